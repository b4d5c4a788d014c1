// pacer sends requests at a fixed rate and prints percentiles of their latency as JSON.
//
// Requests are due at even intervals, independent of the server. Each is sent on the connection that
// has been idle longest, and waits if none is idle. Its latency lasts from its due time to the last
// byte of its response, so it includes that wait. The program has one thread that never sleeps, so
// it needs a core of its own.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sort"
	"strconv"
	"syscall"
	"time"
)

const (
	warmUp  = 300 * time.Millisecond // due in this time: sent, not counted
	lateMax = 5 * time.Second        // after the last request is due: who is not answered, has failed
)

var (
	endOfHead   = []byte("\r\n\r\n")
	length      = []byte("\r\nContent-Length: ")
	chunked     = []byte("\r\nTransfer-Encoding: chunked\r\n")
	endOfChunks = []byte("\r\n0\r\n\r\n")
)

type connection struct {
	file   *os.File // kept, or it would be closed when it is collected
	fd     int
	due    time.Duration // of the request under way, after the start
	isOpen bool          // whether one is under way
	head   []byte        // of its response, as far as it is here
	left   int           // bytes of the body to come; -1: chunked
	tail   []byte        // the last bytes of a chunked body
}

// take parses pieces of a response, and returns whether it is complete.
func (c *connection) take(piece []byte) bool {
	if len(c.head) == 0 || !bytes.HasSuffix(c.head, endOfHead) {
		before := len(c.head)
		c.head = append(c.head, piece...)
		end := bytes.Index(c.head, endOfHead)
		if end < 0 {
			return false
		}
		end += len(endOfHead)
		piece = piece[end-before:]
		c.head = c.head[:end]
		c.left = bodyLength(c.head)
		c.tail = append(c.tail[:0], "\r\n"...)
	}
	if c.left >= 0 {
		c.left -= len(piece)
		if c.left < 0 {
			log.Fatal("more bytes than were promised")
		}
		return c.left == 0
	}
	c.tail = append(c.tail, last(piece)...)
	c.tail = append(c.tail[:0], last(c.tail)...)
	return bytes.Equal(c.tail, endOfChunks)
}

// last returns the final bytes of piece, as many as end a chunked body.
func last(piece []byte) []byte {
	if len(piece) > len(endOfChunks) {
		return piece[len(piece)-len(endOfChunks):]
	}
	return piece
}

func bodyLength(head []byte) int {
	status := string(head[9:12])
	if status[0] != '2' && status != "304" {
		log.Fatalf("answered %s", status)
	}
	if status == "304" || status == "204" {
		return 0
	}
	if bytes.Contains(head, chunked) {
		return -1
	}
	_, rest, found := bytes.Cut(head, length)
	if !found {
		log.Fatalf("no length: %q", head)
	}
	value, _, _ := bytes.Cut(rest, []byte("\r\n"))
	size, err := strconv.Atoi(string(value))
	if err != nil {
		log.Fatal(err)
	}
	return size
}

func main() {
	address := flag.String("address", "", "host:port of the server")
	file := flag.String("requests", "", "file of requests, sent in turn as they are")
	count := flag.Int("connections", 32, "")
	rate := flag.Float64("rate", 1000, "requests per second")
	seconds := flag.Float64("seconds", 2, "")
	flag.Parse()
	text, err := os.ReadFile(*file)
	if err != nil {
		log.Fatal(err)
	}
	requests := bytes.SplitAfter(text, endOfHead)
	requests = requests[:len(requests)-1]
	runtime.LockOSThread()
	p := open(*address, *count)
	debug.SetGCPercent(-1)
	latencies, failed := p.run(requests, *rate, time.Duration(*seconds*float64(time.Second)))
	sort.Slice(latencies, func(i, j int) bool { return latencies[i] < latencies[j] })
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"requests": len(latencies), "failed": failed,
		"p50": percentile(latencies, 0.50), "p99": percentile(latencies, 0.99),
	})
}

// percentile returns microseconds.
func percentile(sorted []time.Duration, share float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return float64(sorted[int(share*float64(len(sorted)-1))].Nanoseconds()) / 1000
}

type pacer struct {
	epoll int
	by    map[int]*connection
	idle  []*connection
	piece []byte
}

func open(address string, count int) *pacer {
	epoll, err := syscall.EpollCreate1(0)
	if err != nil {
		log.Fatal(err)
	}
	p := &pacer{epoll: epoll, by: map[int]*connection{}, piece: make([]byte, 256<<10)}
	for i := 0; i < count; i++ {
		dialled, err := net.Dial("tcp", address)
		if err != nil {
			log.Fatal(err)
		}
		// A copy of the descriptor, unknown to the poller of the runtime.
		file, err := dialled.(*net.TCPConn).File()
		if err != nil {
			log.Fatal(err)
		}
		dialled.Close()
		fd := int(file.Fd())
		syscall.SetNonblock(fd, true)
		event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(fd)}
		if err := syscall.EpollCtl(epoll, syscall.EPOLL_CTL_ADD, fd, &event); err != nil {
			log.Fatal(err)
		}
		made := &connection{file: file, fd: fd, head: make([]byte, 0, 4096)}
		p.by[fd] = made
		p.idle = append(p.idle, made)
	}
	return p
}

// run returns the latencies of requests due after the warm-up, and the number without a response.
func (p *pacer) run(requests [][]byte, rate float64, span time.Duration) ([]time.Duration, int) {
	total := int((warmUp + span).Seconds() * rate)
	latencies := make([]time.Duration, 0, total)
	events := make([]syscall.EpollEvent, len(p.idle))
	sent, answered := 0, 0
	for start := time.Now(); answered < total; {
		now := time.Since(start)
		if now > warmUp+span+lateMax {
			return latencies, total - answered
		}
		for sent < total && len(p.idle) > 0 {
			due := time.Duration(float64(sent) / rate * float64(time.Second))
			if due > now {
				break
			}
			p.send(requests[sent%len(requests)], due)
			sent++
		}
		n, err := syscall.EpollWait(p.epoll, events, 0)
		if err != nil && err != syscall.EINTR {
			log.Fatal(err)
		}
		for i := 0; i < n; i++ {
			c := p.by[int(events[i].Fd)]
			if !p.receive(c) {
				continue
			}
			answered++
			p.idle = append(p.idle, c)
			if c.due >= warmUp {
				latencies = append(latencies, time.Since(start)-c.due)
			}
		}
	}
	return latencies, 0
}

func (p *pacer) send(request []byte, due time.Duration) {
	c := p.idle[0]
	p.idle = p.idle[1:]
	c.due, c.isOpen, c.head = due, true, c.head[:0]
	if n, err := syscall.Write(c.fd, request); err != nil || n != len(request) {
		log.Fatal(fmt.Errorf("wrote %d of %d bytes: %w", n, len(request), err))
	}
}

// receive reads the available bytes, and returns whether the response is complete.
func (p *pacer) receive(c *connection) bool {
	n, err := syscall.Read(c.fd, p.piece)
	if err == syscall.EAGAIN || err == syscall.EINTR {
		return false
	}
	if err != nil || n == 0 || !c.isOpen {
		log.Fatalf("the server closed a connection: %v", err)
	}
	isWhole := c.take(p.piece[:n])
	c.isOpen = !isWhole
	return isWhole
}

// The file server of Go's standard library, with an optional access log.
//
// The log is cheap: one line in the combined format for each request, buffered in memory, and written
// each second or when the buffer is full.
package main

import (
	"bufio"
	"flag"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"
)

func main() {
	address := flag.String("address", "127.0.0.1:8080", "where to listen")
	root := flag.String("root", ".", "the directory to serve")
	file := flag.String("log", "", "the access log; none without it")
	flag.Parse()
	files := http.FileServer(http.Dir(*root))
	if *file != "" {
		files = newAccessLog(*file, files)
	}
	log.Fatal(http.ListenAndServe(*address, files))
}

type accessLog struct {
	next   http.Handler
	mutex  sync.Mutex
	buffer *bufio.Writer
	line   []byte
}

func newAccessLog(file string, next http.Handler) *accessLog {
	opened, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		log.Fatal(err)
	}
	made := &accessLog{next: next, buffer: bufio.NewWriterSize(opened, 64<<10)}
	go made.flushEachSecond()
	return made
}

func (l *accessLog) flushEachSecond() {
	for range time.Tick(time.Second) {
		l.mutex.Lock()
		l.buffer.Flush()
		l.mutex.Unlock()
	}
}

func (l *accessLog) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	counted := &counter{ResponseWriter: w, status: http.StatusOK}
	l.next.ServeHTTP(counted, r)
	l.write(r, counted)
}

func (l *accessLog) write(r *http.Request, answer *counter) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	line := append(l.line[:0], r.RemoteAddr...)
	line = time.Now().AppendFormat(append(line, " - - ["...), "02/Jan/2006:15:04:05 -0700")
	line = append(append(line, `] "`...), r.Method...)
	line = append(append(line, ' '), r.RequestURI...)
	line = append(append(line, ' '), r.Proto...)
	line = strconv.AppendInt(append(line, `" `...), int64(answer.status), 10)
	line = strconv.AppendInt(append(line, ' '), answer.sent, 10)
	line = strconv.AppendQuote(append(line, ' '), r.Referer())
	line = strconv.AppendQuote(append(line, ' '), r.UserAgent())
	l.line = append(line, '\n')
	l.buffer.Write(l.line)
}

// counter counts the bytes; it has ReadFrom, or net/http would not use sendfile.
type counter struct {
	http.ResponseWriter
	status int
	sent   int64
}

func (c *counter) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *counter) Write(piece []byte) (int, error) {
	n, err := c.ResponseWriter.Write(piece)
	c.sent += int64(n)
	return n, err
}

func (c *counter) ReadFrom(source io.Reader) (int64, error) {
	n, err := c.ResponseWriter.(io.ReaderFrom).ReadFrom(source)
	c.sent += n
	return n, err
}

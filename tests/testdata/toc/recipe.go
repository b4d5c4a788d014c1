// The recipe of the layers beside it: go mod init recipe && go get <the two modules> && go run recipe.go
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containers/storage/pkg/chunked/compressor"
	digest "github.com/opencontainers/go-digest"
)

type file struct {
	name, link string
	kind       byte
	body       []byte
}

// text is the same words each time; content-defined chunking finds borders in it.
func text(size int, seed uint32) []byte {
	words := strings.Fields("layer blob index chunk tar gzip frame member offset digest size name root link path")
	var b bytes.Buffer
	for b.Len() < size {
		seed = seed*1664525 + 1013904223
		fmt.Fprintf(&b, "%s%d ", words[seed>>28%uint32(len(words))], seed>>20%7)
	}
	return b.Bytes()[:size]
}

func source() []byte {
	holes := append(append(text(9000, 5), make([]byte, 70000)...), text(3000, 6)...)
	files := []file{
		{name: "./", kind: tar.TypeDir},
		{name: "index.html", body: []byte("<!doctype html><title>published</title>\n")},
		{name: "empty.txt"},
		{name: "assets/", kind: tar.TypeDir},
		{name: "assets/app.js", body: text(30000, 1)},
		{name: "assets/exact.bin", body: text(8192, 2)},
		{name: "assets/large.txt", body: text(150000, 3)},
		{name: "assets/holes.bin", body: holes},
		{name: "docs/deep/er/index.html", body: []byte("<p>no directory of its own\n")},
		{name: "docs/" + strings.Repeat("long", 40) + ".txt", body: []byte("a PAX name\n")},
		{name: "docs/größe.txt", body: []byte("ü\n")},
		{name: "latest.js", kind: tar.TypeSymlink, link: "assets/app.js"},
		{name: "static", kind: tar.TypeSymlink, link: "/assets"},
		{name: "copy.js", kind: tar.TypeLink, link: "assets/app.js"},
		{name: "fifo", kind: tar.TypeFifo},
		{name: "last.txt", body: []byte("the last\n")},
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		kind, mode := f.kind, int64(0o644)
		if kind == 0 {
			kind = tar.TypeReg
		}
		if kind == tar.TypeDir {
			mode = 0o755
		}
		h := &tar.Header{Name: f.name, Typeflag: kind, Linkname: f.link, Size: int64(len(f.body)),
			Mode: mode, ModTime: time.Unix(1600000000, 0)}
		try(w.WriteHeader(h))
		_, err := w.Write(f.body)
		try(err)
	}
	try(w.Close())
	return b.Bytes()
}

type made struct {
	MediaType   string            `json:"mediaType"`
	Annotations map[string]string `json:"annotations"`
}

// legacy writes what estargz writes, with the footer that came before.
type legacy struct{ *estargz.GzipCompressor }

func (l legacy) WriteTOCAndFooter(w io.Writer, off int64, toc *estargz.JTOC, h hash.Hash) (digest.Digest, error) {
	var whole bytes.Buffer
	d, err := l.GzipCompressor.WriteTOCAndFooter(&whole, off, toc, h)
	try(err)
	_, err = w.Write(whole.Bytes()[:whole.Len()-estargz.FooterSize])
	try(err)
	_, err = w.Write(estargz.CreateGzipFooter([]byte(fmt.Sprintf("%016xSTARGZ", off))))
	return d, err
}

func (l legacy) ParseFooter(p []byte) (int64, int64, int64, error) {
	return 0, 0, 0, fmt.Errorf("unused")
}

type legacyCompression struct {
	legacy
	*estargz.LegacyGzipDecompressor
}

func (l legacyCompression) ParseFooter(p []byte) (int64, int64, int64, error) {
	return l.LegacyGzipDecompressor.ParseFooter(p)
}

func build(name string, tarball []byte, all map[string]made, options ...estargz.Option) {
	blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(tarball), 0, int64(len(tarball))), options...)
	try(err)
	content, err := io.ReadAll(blob)
	try(err)
	try(blob.Close())
	_, err = estargz.Open(io.NewSectionReader(bytes.NewReader(content), 0, int64(len(content))))
	try(err)
	try(os.WriteFile(name, content, 0o644))
	all[name] = made{"application/vnd.oci.image.layer.v1.tar+gzip",
		map[string]string{estargz.TOCJSONDigestAnnotation: blob.TOCDigest().String()}}
}

func main() {
	tarball, all := source(), map[string]made{}
	build("current.tar.gz", tarball, all, estargz.WithChunkSize(8192))
	build("inner.tar.gz", tarball, all, estargz.WithChunkSize(65536), estargz.WithMinChunkSize(4096),
		estargz.WithPrioritizedFiles([]string{"last.txt", "assets/app.js"}))
	build("legacy.tar.gz", tarball, all, estargz.WithCompression(legacyCompression{
		legacy{estargz.NewGzipCompressorWithLevel(gzip.BestCompression)}, &estargz.LegacyGzipDecompressor{}}))

	var b bytes.Buffer
	annotations := map[string]string{}
	w, err := compressor.ZstdCompressor(&b, annotations, nil)
	try(err)
	_, err = w.Write(tarball)
	try(err)
	try(w.Close())
	try(os.WriteFile("chunked.tar.zst", b.Bytes(), 0o644))
	all["chunked.tar.zst"] = made{"application/vnd.oci.image.layer.v1.tar+zstd", annotations}

	list, err := json.MarshalIndent(all, "", "  ")
	try(err)
	try(os.WriteFile("layers.json", append(list, '\n'), 0o644))
}

func try(err error) {
	if err != nil {
		panic(err)
	}
}

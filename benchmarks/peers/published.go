// Makes an eStargz and a zstd:chunked layer of a tar, by the reference writers of the formats, and a
// file with the fields of their descriptors.
package main

import (
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containers/storage/pkg/chunked/compressor"
)

type described struct {
	Annotations map[string]string `json:"annotations"`
	Index       int64             `json:"index"`
}

func main() {
	tar, err := os.Open(os.Args[1])
	try(err)
	stat, err := tar.Stat()
	try(err)
	all := map[string]described{}
	all["estargz"] = stargz(tar, stat.Size(), filepath.Join(os.Args[2], "estargz"))
	_, err = tar.Seek(0, io.SeekStart)
	try(err)
	all["chunked"] = chunked(tar, filepath.Join(os.Args[2], "chunked"))
	list, err := json.Marshal(all)
	try(err)
	try(os.WriteFile(filepath.Join(os.Args[2], "described.json"), list, 0o644))
}

func stargz(tar io.ReaderAt, size int64, path string) described {
	blob, err := estargz.Build(io.NewSectionReader(tar, 0, size),
		estargz.WithCompressionLevel(gzip.BestSpeed))
	try(err)
	out, err := os.Create(path)
	try(err)
	written, err := io.Copy(out, blob)
	try(err)
	try(blob.Close())
	where, _, err := estargz.OpenFooter(io.NewSectionReader(out, 0, written))
	try(err)
	try(out.Close())
	toc := map[string]string{estargz.TOCJSONDigestAnnotation: blob.TOCDigest().String()}
	return described{toc, written - where}
}

func chunked(tar io.Reader, path string) described {
	out, err := os.Create(path)
	try(err)
	annotations, level := map[string]string{}, 1
	writer, err := compressor.ZstdCompressor(out, annotations, &level)
	try(err)
	_, err = io.Copy(writer, tar)
	try(err)
	try(writer.Close())
	try(out.Close())
	index := int64(0)
	for name, value := range annotations {
		if strings.HasSuffix(name, "manifest-position") {
			index, err = strconv.ParseInt(strings.Split(value, ":")[1], 10, 64)
			try(err)
		}
	}
	return described{annotations, index}
}

func try(err error) {
	if err != nil {
		panic(err)
	}
}

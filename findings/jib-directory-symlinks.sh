#!/usr/bin/env bash
# jib-maven-plugin 3.5.2: a symbolic link to a directory becomes an empty directory.
#
# In a folder of `extraDirectories`, a link to a file is replaced by the file's content. A link
# to a directory is replaced by a directory with nothing in it; the build says nothing.
set -euo pipefail
command -v mvn >/dev/null || apt-get install -qy --no-install-recommends maven >/dev/null
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/target/classes" "$work/site/real" "$work/layers"
echo content >"$work/site/real/file"
ln -s real/file "$work/site/file-link"
ln -s real "$work/site/directory-link"
cat >"$work/pom.xml" <<'XML'
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>example</groupId>
  <artifactId>site</artifactId>
  <version>1</version>
  <build>
    <plugins>
      <plugin>
        <groupId>com.google.cloud.tools</groupId>
        <artifactId>jib-maven-plugin</artifactId>
        <version>3.5.2</version>
        <configuration>
          <from><image>scratch</image></from>
          <to><image>site</image></to>
          <container><mainClass>none</mainClass></container>
          <extraDirectories>
            <paths><path><from>${project.basedir}/site</from><into>/</into></path></paths>
          </extraDirectories>
        </configuration>
      </plugin>
    </plugins>
  </build>
</project>
XML
mvn --quiet --batch-mode --file "$work/pom.xml" jib:buildTar >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
python3 - "$work/target/jib-image.tar" <<'PY'
import io
import sys
import tarfile

entries = {}
with tarfile.open(sys.argv[1]) as image:
    for member in image:
        if member.name.endswith(".tar.gz"):
            with tarfile.open(fileobj=io.BytesIO(image.extractfile(member).read())) as layer:
                entries.update({entry.name.strip("/"): entry for entry in layer})
below = sorted(name for name in entries if "link" in name or "real" in name)
print("jib-maven-plugin 3.5.2:", ", ".join(name + "/" * entries[name].isdir() for name in below))
assert entries["file-link"].isfile()
assert entries["directory-link"].isdir()
assert below == ["directory-link", "file-link", "real", "real/file"], "the directory has files now"
PY
echo 'as described'

"""Real pages from real images, in Chromium."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.support.parts.images import Image
from tests.support.parts.programs import program
from tests.support.parts.server import ROOT

MONACO = "monaco-editor@0.52.2"
BOOT = b"""<!doctype html>
<meta charset="utf-8">
<title>Monaco</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="min/vs/editor/editor.main.css">
<div id="editor" style="height: 400px"></div>
<script src="min/vs/loader.js"></script>
<script>
  const up = new Promise((resolve, reject) => {
    require.config({ paths: { vs: new URL("min/vs", location).href } });
    require(["vs/editor/editor.main"], () => {
      monaco.editor.create(document.getElementById("editor"), {
        value: "const served: string = 'from a layer';", language: "typescript",
      });
      resolve(monaco);
    }, reject);
  });
</script>
"""
DIAGNOSED = """up.then(async (monaco) => {
  const [model] = monaco.editor.getModels();
  model.setValue("const served: number = 'from a layer';");
  const worker = await (await monaco.languages.typescript.getTypeScriptWorker())(model.uri);
  const [problem] = await worker.getSemanticDiagnostics(model.uri.toString());
  return problem.messageText;
})"""


@pytest.fixture
def monaco(tmp_path: Path) -> dict[str, bytes]:
    """Return every file of the editor in its npm package, and a page that starts it."""
    packing = [program("npm"), "pack", "--silent", "--prefer-offline", MONACO]
    try:
        subprocess.run(packing, cwd=tmp_path, check=True, timeout=120)
    except subprocess.CalledProcessError:
        pytest.skip(f"npm cannot fetch {MONACO}")
    [package] = tmp_path.glob("monaco-editor-*.tgz")
    with tarfile.open(package) as archive:
        files = {
            member.name.removeprefix("package/"): archive.extractfile(member).read()
            for member in archive
            if member.isreg()
        }
    return {**files, "index.html": BOOT}


def test_a_web_application_comes_up(docker_registry, serve, browser, monaco):
    """The Monaco editor, some 1,500 files in one layer, runs in Chromium with its workers."""
    docker_registry.push(Image.of(monaco), "team/monaco:v1")
    repository = f"{docker_registry.host}/team/monaco"
    server = serve({"repos": {repository: {}}, "timeout": "60s"})
    browser.open(f"{server.url}/{repository}:v1/")
    assert "'string' is not assignable to type 'number'" in browser.run(DIAGNOSED)
    assert browser.run("document.querySelectorAll('.view-line span[class^=mtk]').length") > 3
    assert browser.page.problems == []
    assert sum(url.startswith(server.url) for url in browser.page.answers) > 5


def test_the_example_shows_its_own_etag(serve, browser):
    """The example page opens, and its repeated request for a file gets a 304."""
    source = {"source": f"oci:{ROOT}/etc/example"}
    server = serve({"repos": {"blobserve.example/site": source}})
    browser.open(f"{server.url}/blobserve.example/site:v1/")
    shown = "(async () => { while (again.disabled) await new Promise(setTimeout); })()"
    browser.run(f"{shown}.then(() => 1)")
    etag = server.fetch("/blobserve.example/site:v1/images/layer.svg").headers["ETag"]
    assert etag in browser.run("answer.innerText")
    browser.run("again.click()")
    told = "(async () => { while (!outcome.value) await new Promise(setTimeout); })()"
    browser.run(told)
    assert browser.run("outcome.value").startswith("304")
    assert browser.page.problems == []

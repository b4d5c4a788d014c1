"""The direction of imports by folder; and no import installs a reactor."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "blobserve").rglob("*.py"))
}
PUBLIC = [name for name in MODULES if not any(part.startswith("_") for part in name.split("."))]

ORDER: dict[str, tuple[str, ...]] = {
    "blobserve": (
        "errors metrics",
        "names concurrency socket_activation",
        "config",
        "tar configfile",
        "oci",
        "store",
        "web",
        "prepull image_lease",
        "service",
        "daemon testing",
        "__main__",
    ),
    "blobserve.oci": (
        "strict_json artifact image_kinds",
        "manifest http",
        "source credentials",
        "registry local",
        "sources",
    ),
    "blobserve.store": (
        "disk",
        "index",
        "extract",
        "blobs",
        "space",
        "ingest",
        "blobspace",
        "refs",
        "lazy",
        "lease unpacker",
        "pull",
        "refstore",
    ),
    "blobserve.store.lazy": ("toc", "*"),
    "blobserve.web": (
        "http",
        "hosting",
        "content",
        "server",
        "health resource",
        "webhooks",
        "site",
    ),
}
"""The parts of each folder, the lowest first; parts of one line do not import each other."""

PURE = ("names", "tar", "store.index", "store.extract", "store.lazy.toc", "web.hosting")
"""Folders that import no Twisted, directly or indirectly."""


def imports(module: str) -> Iterator[tuple[str, int, bool]]:
    """Yield each module that a module imports, with the line, and if it is at module level."""
    tree = ast.parse(MODULES[module].read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            source = node.module or ""
            for alias in node.names:
                full = f"{source}.{alias.name}"
                yield full if full in MODULES else source, node.lineno, id(node) not in inside
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) not in inside


def rank(folder: str, name: str) -> int:
    """Return the position of the part `name` in its folder; a part without one is an error."""
    for number, line in enumerate(ORDER[folder]):
        if name in line.split():
            return number
    assert "*" in ORDER[folder], f"{folder}.{name} has no place: give it one in ORDER"
    return ORDER[folder].index("*")


def meeting(module: str, imported: str) -> tuple[str, str, str]:
    """Return the innermost folder that holds both, and their parts of it."""
    ours, theirs = module.split("."), imported.split(".")
    shared = 0
    while shared < min(len(ours), len(theirs)) and ours[shared] == theirs[shared]:
        shared += 1
    folder = ".".join(ours[:shared])
    return folder, [*ours, ""][shared], [*theirs, ""][shared]


@pytest.mark.parametrize("folder", ORDER)
def test_everything_has_a_place(folder: str) -> None:
    """Each part of an ordered folder has a position, and each position has a part."""
    below = {name[len(folder) + 1 :].split(".")[0] for name in MODULES if name.startswith(folder)}
    parts = below - {""}
    for name in parts:
        rank(folder, name)
    assert {name for line in ORDER[folder] for name in line.split()} - {"*"} <= parts


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    """Modules import from their own folder and lower ones, never from above."""
    for name, line, _ in imports(module):
        if name.split(".")[0] != "blobserve":
            continue
        folder, ours, theirs = meeting(module, name)
        if folder not in ORDER or not ours or ours == theirs:
            continue
        assert theirs, f"{module}:{line} imports {name}, the folder that it is in"
        mine, its = rank(folder, ours), rank(folder, theirs)
        same = mine == its and ORDER[folder][mine] == "*"
        assert its < mine or same, f"{module}:{line} imports {name}"


def importers(package: str) -> dict[str, bool]:
    """Return the modules that import a package; the value is true if all do so in functions."""
    return {
        module: not any(at_top for name, _, at_top in imports(module) if name == package)
        for module in MODULES
        if any(name == package or name.startswith(f"{package}.") for name, _, _ in imports(module))
    }


def test_each_library_has_its_home() -> None:
    """Klein is imported inside one function, treq in one module, SQLite only in the store."""
    assert list(importers("klein").values()) == [True]
    assert len(importers("treq")) == 1
    assert {module.split(".")[1] for module in importers("sqlite3")} == {"store"}


@pytest.mark.parametrize("folder", PURE)
def test_pure_folders_know_no_twisted(folder: str) -> None:
    """Importing all modules of a pure folder imports no Twisted."""
    modules = [name for name in MODULES if f"{name}.".startswith(f"blobserve.{folder}.")]
    assert len(modules) > 1
    program = (
        f"import sys, importlib; [importlib.import_module(name) for name in {modules!r}];"
        "sys.exit(any(name.split('.')[0] == 'twisted' for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


def test_only_the_web_knows_http_servers() -> None:
    """No module below the web imports an HTTP server."""
    web = rank("blobserve", "web")
    for package in ("twisted.web.server", "twisted.web.resource", "klein"):
        for module in set(importers(package)) - {"blobserve"}:
            assert rank("blobserve", module.split(".")[1]) >= web, f"{module} imports {package}"


@pytest.mark.parametrize("module", PUBLIC)
def test_importing_installs_no_reactor(module: str) -> None:
    """Importing any public module leaves the choice of the reactor to the application."""
    program = (
        f"import sys, importlib; importlib.import_module({module!r});"
        "sys.exit('twisted.internet.reactor' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


def test_a_start_imports_no_rare_parts() -> None:
    """A service starts without the parts that most servers do not need."""
    rare = [
        "brotli",
        "blobserve.oci.local.layout",
        "blobserve.store.blobs.sibling_decoder",
        "blobserve.store.lazy.toc.entries",
        "blobserve.web.content.listing",
        "blobserve.web.hosting.header_rules",
        "blobserve.web.hosting.redirects",
    ]
    program = (
        "import sys, blobserve.daemon.plugin, blobserve.service;"
        f"sys.exit(any(name in sys.modules for name in {rare!r}))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


def test_the_public_names_install_no_reactor() -> None:
    """The names that the package exports to applications install no reactor."""
    program = (
        "import sys, blobserve;"
        "[getattr(blobserve, name) for name in blobserve.__all__];"
        "sys.exit('twisted.internet.reactor' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


def test_names_that_the_package_does_not_have() -> None:
    """A name that the package does not export is an AttributeError."""
    import blobserve

    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        blobserve.Nothing  # noqa: B018


def test_the_plugin_is_found_and_imports_nothing() -> None:
    """twist finds the plugin, and finding it imports nothing of blobserve."""
    program = (
        "import sys; from twisted.plugin import getPlugins;"
        "from twisted.application.service import IServiceMaker;"
        "[found] = [each for each in getPlugins(IServiceMaker) if each.tapname == 'blobserve'];"
        "sys.exit(any(name.startswith('blobserve') for name in sys.modules))"
    )
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", program], cwd="/", env=environment, check=True, timeout=60
    )
    assert not (ROOT / "twisted" / "__init__.py").exists()
    assert not (ROOT / "twisted" / "plugins" / "__init__.py").exists()

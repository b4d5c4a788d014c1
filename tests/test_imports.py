"""The arrows of the house: what may import what, and that no import installs a reactor."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "blobserve").rglob("*.py"))
}
PUBLIC = [name for name in MODULES if not any(part.startswith("_") for part in name.split("."))]

GROUND = (
    "errors",
    "config",
    "metrics",
    "threads",
    "portions",
    "systemd",
    "socket_activation",
    "loglines",
    "tarheader",
    "tarnames",
)
FLOORS = ("oci", "store", "web")
TOP = (
    "service",
    "sources",
    "readiness",
    "prepull",
    "plugin",
    "verify",
    "__main__",
    "testing",
    "configfile",
    "",
)
# The two values that the configuration speaks in.
VALUES = ("blobserve.oci.manifest", "blobserve.oci.reference", "blobserve.oci.digest")


def imports(module: str) -> Iterator[tuple[str, int, bool]]:
    """What a module imports: the name, the line, and whether at module level."""
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
            yield node.module or "", node.lineno, id(node) not in inside
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) not in inside


def floor(module: str) -> str:
    """The first part of a module's name below the package."""
    return [*module.split("."), ""][1]


def rank(module: str) -> int:
    """How high a module stands."""
    name = floor(module)
    if name in GROUND:
        return 0
    return 1 + FLOORS.index(name) if name in FLOORS else 4


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    """Every module imports from its own floor and from floors below, and nothing from above."""
    assert floor(module) in GROUND + FLOORS + TOP, "a room on no floor: say here where it stands"
    for name, line, _ in imports(module):
        if name.split(".")[0] != "blobserve":
            continue
        is_value = rank(module) == 0 and name in VALUES
        assert rank(name) <= rank(module) or is_value, f"{module}:{line} imports {name}"


def importers(package: str) -> dict[str, bool]:
    """The modules that import a package, and whether all of them do so inside functions."""
    return {
        module: not any(at_top for name, _, at_top in imports(module) if name == package)
        for module in MODULES
        if any(name == package or name.startswith(f"{package}.") for name, _, _ in imports(module))
    }


def test_each_library_has_its_home() -> None:
    """Klein is known inside one function, treq in one room, SQLite in the store alone."""
    assert list(importers("klein").values()) == [True]
    assert len(importers("treq")) == 1
    assert {floor(module) for module in importers("sqlite3")} == {"store"}


def test_the_pure_rooms_know_no_twisted() -> None:
    """Reading layers and references needs no Twisted."""
    pure = ["store.tar", "store.decompress", "store.index", "store.tree", "store.extractor"]
    pure += ["store.filesystem"]
    pure += [f"store.published.{room}" for room in ("toc", "contents", "place", "chunk", "build")]
    pure += ["store.published.filesystem"]
    pure += ["store.merge", "store.nodes", "store.replay", "store.walk", "store.content"]
    pure += ["store.needed", "store.codings", "store.compress", "store.decode", "web.negotiate"]
    pure += ["tarheader", "tarnames", "oci.members"]
    pure += ["oci.digest", "oci.reference", "oci.manifest", "oci.challenge", "web.conditional"]
    knowing = set(importers("twisted"))
    assert [name for name in pure if f"blobserve.{name}" in knowing] == []
    assert [name for name in pure if f"blobserve.{name}" not in MODULES] == []


def test_only_the_web_knows_http_servers() -> None:
    """Nothing below the web imports an HTTP server."""
    for package in ("twisted.web.server", "twisted.web.resource", "klein"):
        below = [module for module in importers(package) if 0 <= rank(module) < 3]
        assert below == [], package


@pytest.mark.parametrize("module", PUBLIC)
def test_importing_installs_no_reactor(module: str) -> None:
    """Importing any public module leaves the choice of the reactor to the application."""
    program = (
        f"import sys, importlib; importlib.import_module({module!r});"
        "sys.exit('twisted.internet.reactor' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


def test_the_public_names_install_no_reactor() -> None:
    """The names that an embedding application imports from the package leave the reactor alone."""
    program = (
        "import sys, blobserve;"
        "[getattr(blobserve, name) for name in blobserve.__all__];"
        "sys.exit('twisted.internet.reactor' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


def test_names_that_the_package_does_not_have() -> None:
    """A name that the package does not export is an AttributeError, as anywhere."""
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

"""The rules of ARCHITECTURE.md that a program can check, as functions from source text to a list of complaints."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = "mailboat"
COMPUTED = "?"

# What each part may import of mailboat, besides itself.
ALLOWED = {
    "protocol": frozenset[str](),
    "agent": frozenset({"protocol"}),
    "server": frozenset({"protocol"}),
    "cli": frozenset({"protocol", "agent", "server"}),
}

# What does I/O, tells the time or draws entropy: `protocol` gets these things, or their results, as arguments.
# fmt: off
IMPURE = frozenset({
    "aiofiles", "aiohttp", "asyncio", "concurrent", "duckdb", "fcntl", "ftplib", "glob", "http", "logging", "mmap",
    "multiprocessing", "os", "pathlib", "platform", "platformdirs", "portalocker", "random", "secrets", "select",
    "selectors", "shutil", "signal", "socket", "socketserver", "sqlite3", "ssl", "subprocess", "tempfile", "threading",
    "time", "urllib",
})
# fmt: on
# A lock keeps what is made once from being made twice at a time; it brings nothing in.
PURE_WITHIN = frozenset({"urllib.parse", "http.HTTPStatus", "http.HTTPMethod", "threading.Lock"})
# Only part of these does: what is pure in them may be used.
IMPURE_NAMES = {
    "datetime": frozenset({"now", "utcnow", "today"}),
    "uuid": frozenset({"uuid1", "uuid4", "uuid6", "uuid7", "getnode"}),
}

# What opens or changes files: the agent does so by its port (`agent.files`), so that a test can have any call fail.
PORT = frozenset({"mailboat.agent.files", "mailboat.agent.descriptors"})
# fmt: off
CHANGING_OS = frozenset({
    "chmod", "fdatasync", "fsync", "ftruncate", "link", "makedirs", "mkdir", "open", "remove", "removedirs", "rename",
    "replace", "rmdir", "symlink", "truncate", "unlink", "utime", "write",
})
CHANGING = frozenset({"mkdir", "rmdir", "rmtree", "touch", "unlink", "write_bytes", "write_text"})
# fmt: on
LIBRARIES_OF_FILES = frozenset({"shutil", "tempfile"})

MAX_FUNCTION_LINES = 70
MAX_FILE_LINES = 500


@dataclass(frozen=True, slots=True)
class Module:
    """One module of an installed package: its full name, whether it is a package, and its text."""

    name: str
    is_package: bool
    text: str

    @property
    def part(self) -> str:
        return self.name.split(".")[1]


def installed_modules(part: str, folder: Path) -> Iterator[Module]:
    """Yield every module below `folder`, the installed place of `mailboat.<part>`."""
    for path in sorted(folder.rglob("*.py")):
        steps = path.relative_to(folder).with_suffix("").parts
        is_package = steps[-1] == "__init__"
        yield Module(".".join((ROOT, part, *steps[: len(steps) - is_package])), is_package, path.read_text("utf-8"))


def imported(module: Module) -> Iterator[tuple[int, str]]:
    """Yield (line, full dotted name) for each import, wherever in the file: in functions and under TYPE_CHECKING too.

    `from a import b` yields `a.b`, since b may be a module.
    """
    for node in ast.walk(ast.parse(module.text)):
        match node:
            case ast.Import():
                for alias in node.names:
                    yield node.lineno, alias.name
            case ast.ImportFrom():
                base = _base_of(node, module)
                for alias in node.names:
                    yield node.lineno, f"{base}.{alias.name}"
            case ast.Call(func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module")):
                yield node.lineno, _constant_name(node)
            case _:
                pass


def _base_of(node: ast.ImportFrom, module: Module) -> str:
    """The absolute name of the package that a `from` names, which may be relative to the module."""
    if not node.level:
        return node.module or ""
    steps = module.name.split(".")
    dropped = node.level - module.is_package
    steps = steps[: len(steps) - dropped]
    return ".".join([*steps, node.module] if node.module else steps)


def _constant_name(call: ast.Call) -> str:
    """The module that `import_module("name")` names, or COMPUTED."""
    match call.args:
        case [ast.Constant(value=str(name)), *_]:
            return name
        case _:
            return COMPUTED


def import_complaints(module: Module) -> list[str]:
    """Say what the module imports and must not."""
    complaints = []
    for line, name in imported(module):
        reason = _why_not(module.part, name)
        if reason:
            complaints.append(f"{module.name}:{line} imports {name}: {reason}")
    if module.part == "protocol":
        complaints += _impure_calls(module)
    return complaints


def _why_not(part: str, name: str) -> str | None:
    top, *rest = name.split(".")
    if top == COMPUTED:
        return "the name is computed, so nobody can check it"
    if top in ALLOWED:
        return f"a bare folder of the repository; the package is {ROOT}.{top}"
    if top == ROOT:
        other = rest[0] if rest else "*"
        allowed = other == part or other in ALLOWED[part]
        return None if allowed else f"{ROOT}.{part} must not know {ROOT}.{other}"
    pure = any(name == known or name.startswith(known + ".") for known in PURE_WITHIN)
    if part == "protocol" and top in IMPURE and not pure:
        return "protocol does no I/O, reads no clock and draws no entropy"
    return None


def _impure_calls(module: Module) -> list[str]:
    """Say where the module reaches for the clock or entropy through an otherwise pure module, or opens a file."""
    complaints = []
    forbidden = frozenset[str]().union(*IMPURE_NAMES.values())
    for node in ast.walk(ast.parse(module.text)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner) | ast.Attribute(attr=owner), attr=name)) if (
                owner in (*IMPURE_NAMES, "date") and name in forbidden
            ):
                complaints.append(f"{module.name}:{node.lineno} calls {owner}.{name}")
            case ast.Call(func=ast.Name(id="open" | "input" | "print" as name)):
                complaints.append(f"{module.name}:{node.lineno} calls {name}()")
            case ast.ImportFrom(module=owner) if owner in IMPURE_NAMES:
                complaints += [
                    f"{module.name}:{node.lineno} imports {owner}.{alias.name}"
                    for alias in node.names
                    if alias.name in IMPURE_NAMES[owner]
                ]
            case _:
                pass
    return complaints


def size_complaints(module: Module) -> list[str]:
    """Say which functions and whether the file itself are longer than agreed. Decorators count, docstrings too."""
    complaints = []
    lines = len(module.text.splitlines())
    if lines > MAX_FILE_LINES:
        complaints.append(f"{module.name} has {lines} lines, agreed are {MAX_FILE_LINES}: split it by concept")
    for node in ast.walk(ast.parse(module.text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        length = (node.end_lineno or node.lineno) - first + 1
        if length > MAX_FUNCTION_LINES:
            complaints.append(
                f"{module.name}:{node.lineno} {node.name} has {length} lines, agreed: {MAX_FUNCTION_LINES}"
            )
    return complaints


def port_complaints(module: Module) -> list[str]:
    """What a module of the agent does to files past the port."""
    if module.part != "agent" or module.name in PORT:
        return []
    tree = ast.parse(module.text)
    found = [
        f"{module.name}:{node.lineno} calls {ast.unparse(node.func)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _changes_files(node.func)
    ]
    libraries = [(line, name.partition(".")[0]) for line, name in imported(module)]
    return found + [f"{module.name}:{line} imports {name}" for line, name in libraries if name in LIBRARIES_OF_FILES]


def _changes_files(function: ast.expr) -> bool:
    match function:
        case ast.Name(id="open"):
            return True
        case ast.Attribute(value=ast.Name(id="os"), attr=name):
            return name in CHANGING_OS
        case ast.Attribute(attr=name):
            return name in CHANGING
    return False

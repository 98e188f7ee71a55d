"""The rules of the house as functions: {path: content} -> what breaks them.

test_conventions.py runs them over the repository, and over samples that prove that each can fail.
Paths are relative to the repository root, with '/'.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping

Files = Mapping[str, bytes]
Function = ast.FunctionDef | ast.AsyncFunctionDef


# What a part may import of this project, beside itself and EVERYWHERE. Sub-parts come first.
EVERYWHERE = (
    "tfds_angio.errors",
    "tfds_angio.paths",
    "cmunet_jax.config",
    "cmunet_jax.__version__",
)
BELOW_STAGES = tuple(
    f"cmunet_jax.{part}"
    for part in (
        "sweep predict viewer qca selection imaging "
        "evaluation train objectives data models losses interop report"
    ).split()
)
ARROW: dict[str, tuple[str, ...]] = {
    "cmunet_jax.main": ("cmunet_jax.stages", "cmunet_jax.malloc"),
    "cmunet_jax.stages": (*BELOW_STAGES, "cmunet_jax.benchmark", "tfds_angio"),
    "cmunet_jax.benchmark": (*BELOW_STAGES, "tfds_angio"),
    "cmunet_jax.sweep": ("cmunet_jax.train",),
    "cmunet_jax.predict": (
        *(f"cmunet_jax.{part}" for part in ("imaging", "qca", "evaluation", "data")),
        "tfds_angio",
    ),
    "cmunet_jax.viewer": (
        *(f"cmunet_jax.{part}" for part in ("predict", "qca", "imaging")),
        "tfds_angio",
    ),
    "cmunet_jax.selection": (
        *(f"cmunet_jax.{part}" for part in ("imaging", "data", "evaluation")),
        "tfds_angio",
    ),
    "cmunet_jax.qca": (),
    "cmunet_jax.imaging": ("cmunet_jax.data", "tfds_angio"),
    "cmunet_jax.evaluation": ("cmunet_jax.data", "cmunet_jax.models", "tfds_angio"),
    "cmunet_jax.train": ("cmunet_jax.objectives.base", "cmunet_jax.data"),
    "cmunet_jax.objectives": ("cmunet_jax.data.views", "cmunet_jax.models", "cmunet_jax.losses"),
    "cmunet_jax.data": ("tfds_angio",),
    "cmunet_jax.report": ("cmunet_jax.evaluation",),
    "cmunet_jax.interop": ("cmunet_jax.models",),
    "cmunet_jax.models": (),
    "cmunet_jax.losses": (),
    "cmunet_jax.config": (),
    "cmunet_jax.malloc": (),
    "cmunet_jax": (),
    "tfds_angio": (),
    "configs": ("cmunet_jax.data", "cmunet_jax.objectives", "cmunet_jax.sweep.runners"),
}
PURE = (
    "cmunet_jax/losses.py",
    "cmunet_jax/data/augment.py",
    "cmunet_jax/evaluation/metrics.py",
)
# The only modules that import PyTorch, and what writes and runs ONNX.
RIVALS = ("cmunet_jax/benchmark/torch_", "cmunet_jax/interop/pytorch/")
LARGEST_FILE, LONGEST_FILE, LONGEST_FUNCTION = 1_000_000, 400, 70


def python(files: Files, *prefixes: str) -> Iterator[tuple[str, ast.Module]]:
    """Yields (path, tree) of the Python files under any of `prefixes` (all without)."""
    for path, content in sorted(files.items()):
        if path.endswith(".py") and (not prefixes or path.startswith(prefixes)):
            yield path, ast.parse(content)


def is_test(path: str) -> bool:
    """Whether `path` is a test or belongs to the tests."""
    return path.startswith("tests/") or path.endswith("_test.py")


def module_name(path: str) -> str:
    """'a/b.py' -> 'a.b'; 'a/__init__.py' -> 'a'."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields (line, full dotted name) of everything that is imported anywhere in `tree`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether dotted `name` is one of `prefixes` or lies below one."""
    return any(name == p or name.startswith(p + ".") for p in prefixes)


def public_functions(tree: ast.Module) -> Iterator[Function]:
    """Yields the public functions of a module, without methods."""
    for node in tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node


def backward_imports(files: Files) -> Iterator[str]:
    """Imports go main -> stages -> ... -> models, never back."""
    for path, tree in python(files, "cmunet_jax/", "tfds_angio/", "configs/"):
        name = module_name(path)
        part = next(part for part in ARROW if within(name, (part,)))
        allowed = (part, *ARROW[part], *(EVERYWHERE if part != "tfds_angio" else ()))
        if part == "cmunet_jax":
            allowed = EVERYWHERE
        for line, target in imports(tree):
            ours = within(target, ("cmunet_jax", "tfds_angio", "configs", "tests"))
            if target.startswith(".") or (
                ours and not within(target, allowed) and not is_test(path)
            ):
                yield f"{path}:{line} imports {target}, which is not down the arrow from {part}"


def import_cycles(files: Files) -> Iterator[str]:
    """No module needs itself to be imported."""
    trees = {module_name(path): tree for path, tree in python(files, "cmunet_jax/", "tfds_angio/")}
    needs: dict[str, set[str]] = {}
    for name, tree in trees.items():
        top = ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], [])
        found = {target for _, target in imports(top)}
        needs[name] = {m for m in (f if f in trees else f.rpartition(".")[0] for f in found)} & {
            *trees
        }
    # Modules that need nothing any more are taken away; what stays is on or above a cycle.
    while leaves := {name for name, wanted in needs.items() if not wanted - {name}}:
        needs = {n: wanted - leaves for n, wanted in needs.items() if n not in leaves}
    for name, wanted in sorted(needs.items()):
        yield f"{name} and {', '.join(sorted(wanted))} import each other in a circle"


def undocumented(files: Files) -> Iterator[str]:
    """Every public module, class, function and method has a docstring."""
    for path, tree in python(files, "cmunet_jax/", "tfds_angio/", "configs/"):
        if is_test(path):
            continue
        if not ast.get_docstring(tree):
            yield f"{path}:1 the module has no docstring"
        classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name[0] != "_"]
        for node in (n for body in (tree.body, *(c.body for c in classes)) for n in body):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if not node.name.startswith("_") and not ast.get_docstring(node):
                    yield f"{path}:{node.lineno} {node.name} has no docstring"


def impure(files: Files) -> Iterator[str]:
    """Losses, metrics and augmentations read and write nothing but their arguments."""
    outside = ("os", "io", "sys", "time", "pathlib", "logging", "random", "shutil", "absl", "json")
    for path, tree in python(files, *PURE):
        for line, target in imports(tree):
            if within(target, outside):
                yield f"{path}:{line} imports {target} into a module of pure functions"
        for node in ast.walk(tree):
            if isinstance(node, ast.Global | ast.Nonlocal):
                yield f"{path}:{node.lineno} {', '.join(node.names)} is not an argument"
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("open", "print"):
                yield f"{path}:{node.lineno} a pure function does not {ast.unparse(node.func)}"


def unstated_ranges(files: Files) -> Iterator[str]:
    """Docstrings of pure functions state shapes, and a range or a unit."""
    shape = re.compile(r"\[(\.\.\.|[A-Z])|\bscalar")
    # A range ('in [0, 1]', '0..1', '0/1'), a bound ('> 0', 'at least'), or a unit.
    value = re.compile(
        r"in [\[(]|\d\.\.\d|0/1|0 or 1|[<>≤≥]|at least|at most|bool|"
        r"pixel|\bpx\b|nats|radian|degree|probabilit|fraction|any range|same range|non-zero"
    )
    for path, tree in python(files, *PURE):
        for node in public_functions(tree):
            text = ast.get_docstring(node) or ""
            annotations = " ".join(
                ast.unparse(a.annotation) for a in arguments(node) if a.annotation
            )
            if "Array" not in annotations:
                continue
            if not shape.search(text):
                yield f"{path}:{node.lineno} {node.name}: the docstring states no shape"
            if not value.search(text):
                yield f"{path}:{node.lineno} {node.name}: the docstring states no range or unit"


def arguments(node: Function) -> list[ast.arg]:
    """All named arguments of a function, in order."""
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def augment_signatures(files: Files) -> Iterator[str]:
    """Augmentations take `key` first if they are random, then arrays, then keyword-only options."""
    for path, tree in python(files, "cmunet_jax/data/augment.py"):
        for node in public_functions(tree):
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
            random = any(
                isinstance(n, ast.Attribute) and ast.unparse(n).startswith("jax.random.")
                for n in ast.walk(node)
            )
            where = f"{path}:{node.lineno} {node.name}"
            if random and names[:1] != ["key"]:
                yield f"{where} is random but its first argument is not key"
            if "key" in names[1:]:
                yield f"{where}: key is not the first argument"
            if node.args.defaults:
                yield f"{where}: options are keyword-only"


def mutable_state(files: Files) -> Iterator[str]:
    """Modules and classes hold constants only: UPPER_CASE, never changed; nothing is global."""
    makers = {"dict", "list", "set", "defaultdict", "deque", "Counter", "OrderedDict"}
    displays = ast.Dict | ast.List | ast.Set | ast.DictComp | ast.ListComp | ast.SetComp
    for path, tree in python(files, "cmunet_jax/", "tfds_angio/", "configs/"):
        if is_test(path):
            continue
        bodies = [tree.body, *(n.body for n in ast.walk(tree) if isinstance(n, ast.ClassDef))]
        for node in (n for body in bodies for n in body):
            if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            maker = ast.unparse(node.value.func) if isinstance(node.value, ast.Call) else ""
            mutable = isinstance(node.value, displays) or maker.rpartition(".")[2] in makers
            for target in (t for t in targets if isinstance(t, ast.Name)):
                if mutable and not target.id.isupper() and target.id != "__all__":
                    yield f"{path}:{node.lineno} {target.id} is mutable but not named as a constant"
        yield from (f"{path}:{line} {what}" for line, what in _mutations(tree))


def _mutations(tree: ast.Module) -> Iterator[tuple[int, str]]:
    methods = "append extend insert add update pop popitem clear remove discard setdefault".split()

    def constant(node: ast.AST) -> str:
        name = getattr(node, "id", "") or getattr(node, "attr", "")
        return name if name.isupper() and len(name) > 1 else ""

    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield node.lineno, f"global {', '.join(node.names)}"
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            if constant(node.value):
                yield node.lineno, f"changes the constant {constant(node.value)}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in methods and constant(node.func.value):
                yield node.lineno, f"changes the constant {constant(node.func.value)}"


def swallowed(files: Files) -> Iterator[str]:
    """No exception disappears: a handler acts, and a broad one raises or uses the error."""
    for path, tree in python(files):
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                silent = all(isinstance(n, ast.Pass) or _is_dots(n) for n in node.body)
                if isinstance(node.body[0], ast.Continue) and not is_test(path):
                    # `continue  # where it is reported instead` is not silent.
                    silent = b"#" not in files[path].splitlines()[node.body[0].lineno - 1]
                broad = not node.type or ast.unparse(node.type) in ("Exception", "BaseException")
                body = ast.Module(node.body, [])
                acts = any(
                    isinstance(n, ast.Raise) or (node.name and getattr(n, "id", "") == node.name)
                    for n in ast.walk(body)
                )
                if silent or (broad and not acts):
                    yield f"{path}:{node.lineno} an exception is swallowed"
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
                if any(ast.unparse(a) in ("Exception", "BaseException") for a in node.args):
                    yield f"{path}:{node.lineno} every exception is suppressed"


def _is_dots(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and getattr(node.value, "value", None) is Ellipsis


def foreign_frameworks(files: Files) -> Iterator[str]:
    """No TensorFlow, PyTorch or Keras outside the tests, and none that drags them in.

    PyTorch itself is the benchmark's rival and writes ONNX, in modules that nothing else imports at
    its start.
    """
    banned = ("tensorflow", "torch", "torchvision", "keras", "tensorboard", "monai")
    for path, tree in python(files):
        for line, target in imports(tree):
            rival = path.startswith(RIVALS) and within(target, ("torch",))
            if within(target, banned) and not (is_test(path) or rival):
                yield f"{path}:{line} imports {target}"


def hidden_randomness(files: Files) -> Iterator[str]:
    """Randomness comes from jax keys or from seeded numpy Generators."""
    # RandomState, seeded, is for results that another library drew from it.
    names = "default_rng|Generator|SeedSequence|Philox|PCG64|RandomState"
    legacy = re.compile(rf"^(np|numpy)\.random\.(?!{names})")
    for path, tree in python(files, "cmunet_jax/", "tfds_angio/", "configs/"):
        for line, target in imports(tree):
            if within(target, ("random",)):
                yield f"{path}:{line} imports {target}, a generator shared by all"
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and legacy.match(ast.unparse(node)):
                yield f"{path}:{node.lineno} {ast.unparse(node)} has a state shared by all"
            if isinstance(node, ast.Call) and not node.args and not node.keywords:
                name = ast.unparse(node.func).rpartition(".")[-1]
                if name in ("default_rng", "RandomState"):
                    yield f"{path}:{node.lineno} {name}() without a seed"


def too_long(files: Files) -> Iterator[str]:
    """A file holds one idea and a function fits a screen."""
    for path, tree in python(files):
        lines = files[path].count(b"\n")
        if lines > LONGEST_FILE:
            yield f"{path}: {lines} lines, more than {LONGEST_FILE}"
        for node in ast.walk(tree):
            if isinstance(node, Function) and not is_test(path):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    yield f"{path}:{node.lineno} {node.name}: {length} lines"


def too_large(files: Files) -> Iterator[str]:
    """No file of the repository is larger than a megabyte."""
    for path, content in sorted(files.items()):
        if len(content) > LARGEST_FILE:
            yield f"{path}: {len(content) / 1e6:.1f} MB"


def _lines(files: Files, pattern: re.Pattern[str], what: str) -> Iterator[str]:
    for path, content in sorted(files.items()):
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
            if match := pattern.search(line):
                yield f"{path}:{number} {what}: {match.group(0)}"


def machine_paths(files: Files) -> Iterator[str]:
    """Nothing names a folder of somebody's machine or a package host."""
    folders = r"(?<![\w.{}$-])/(?:home|Users|root|work|farm)/[\w.-]+|\b[A-Z]:\\\\?Users"
    yield from _lines(files, re.compile(folders), "a path of one machine")
    hosts = r"py" r"pi\.org|files\.python" r"hosted|--(?:extra-)?index-url[ =]\S"
    yield from _lines(files, re.compile(hosts), "a package host")


def unfinished(files: Files) -> Iterator[str]:
    """Nothing is left for later, expected to fail or commented out."""
    words = r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b|mark\.xfa" r"il\b"
    words += r"|raise NotImplemented" r"Error(\(\))?\s*$"
    yield from _lines(files, re.compile(words), "left for later")
    statements = ast.Import | ast.ImportFrom | ast.Return | Function | ast.ClassDef | ast.Assert
    for path, _ in python(files):
        for token in tokenize.tokenize(io.BytesIO(files[path]).readline):
            if token.type != tokenize.COMMENT:
                continue
            try:
                found = ast.parse(token.string.lstrip("# ")).body
            except (SyntaxError, ValueError):
                found = []  # prose, as it should be
            called = [isinstance(n, ast.Expr) and isinstance(n.value, ast.Call) for n in found]
            if any(called) or any(isinstance(n, statements) for n in found):
                yield f"{path}:{token.start[0]} code in a comment: {token.string}"


def empty_tests(files: Files) -> Iterator[str]:
    """Every test can fail: it asserts, expects an exception or calls a helper that does."""
    sign = re.compile(r"^(raises|warns|fail|_?(assert|check|expect|verify|validate)\w*)$")
    for path, tree in python(files):
        for node in ast.walk(tree):
            if isinstance(node, Function) and node.name.startswith("test_") and is_test(path):
                inner = [n for statement in node.body for n in ast.walk(statement)]
                names = (getattr(n, "attr", "") or getattr(n, "id", "") for n in inner)
                asserts = any(isinstance(n, ast.Assert) for n in inner)
                if not asserts and not any(sign.match(name) for name in names):
                    yield f"{path}:{node.lineno} {node.name} asserts nothing"


def config_headers(files: Files) -> Iterator[str]:
    """The header of a config gives the command that runs it."""
    for path, tree in python(files, "configs/"):
        if path.endswith(("__init__.py", "common.py")):
            continue
        text = ast.get_docstring(tree) or ""
        if f"python -m cmunet_jax.main --config {path}" not in " ".join(text.split()):
            yield f"{path}:1 the header does not give the command"
        if not any(isinstance(n, Function) and n.name == "get_config" for n in tree.body):
            yield f"{path}:1 defines no get_config"

"""Coverage-guided fuzzing of whatever reads a user's files, by libFuzzer through atheris.

    python -m tests.faults.fuzz TARGET FOLDER SECONDS

Each target gets bytes and gives them to a reader. A UserError (or the error by which a reader tells
its caller that a file is unusable) is the right answer to nonsense. Anything else ends the process
with a trace and the input, as do 20 seconds for one input, 3 GB of memory, and any attempt to start
a program, to open a socket or to unpickle.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import random
import shutil
import sys
from collections.abc import Callable
from typing import Any

import atheris
import numpy as np

from tests.interop import torch_writer

with atheris.instrument_imports(include=["cmunet_jax", "tfds_angio", "configs"]):
    from cmunet_jax import config as config_lib
    from cmunet_jax import main as main_module
    from cmunet_jax.imaging import dicom, gdcm_process, seg
    from cmunet_jax.imaging.case import UnreadableCase
    from cmunet_jax.interop import importing
    from cmunet_jax.report import results as report_results
    from cmunet_jax.stages import record
    from cmunet_jax.sweep.claims import Claims
    from cmunet_jax.sweep.records import Records
    from cmunet_jax.sweep.store import open_store
    from cmunet_jax.train import loading, manifest, metrics_file, store
    from configs import finetune, pretrain
    from tfds_angio import options
    from tfds_angio.angio_folder import load, scan
    from tfds_angio.dataset import INDEX, AngioDataset
    from tfds_angio.errors import UserError
    from tfds_angio.images import SUFFIXES

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect",
             "pickle.find_class", "ctypes.dlopen")  # fmt: skip
KEY = "a"


def images(folder: pathlib.Path, data: bytes) -> None:
    """An image and its mask, of any suffix; never raises."""
    suffix = SUFFIXES[data[0] % len(SUFFIXES)] if data else ".png"
    path = folder / f"x{suffix}"
    path.write_bytes(data[1:])
    made = load.load(scan.Entry("x", path, path), root=folder, percentile=0.1)
    assert made.image is not None or made.problems


def dataset(folder: pathlib.Path, data: bytes) -> None:
    """The index of a data set, and its labelled draws (the published split lists)."""
    (folder / "splits").mkdir(exist_ok=True)
    (folder / INDEX).write_bytes(data)
    (folder / "splits" / "labelled_draw0.json").write_bytes(data)
    for read in (lambda: _read_all(AngioDataset(folder)), lambda: _good(folder).labelled_order(0)):
        with contextlib.suppress(UserError):
            read()


def _read_all(opened: AngioDataset) -> None:
    for split in opened.sizes:
        assert len(opened.ids(split)) == len(opened.patients(split)) == len(opened.groups(split))
    assert opened.metadata is not None and opened.knows_groups in (True, False)


def _good(folder: pathlib.Path) -> AngioDataset:
    opened = AngioDataset.__new__(AngioDataset)
    opened.directory, opened.name = folder, "x"
    return opened


def manifests(folder: pathlib.Path, data: bytes) -> None:
    """A checkpoint's manifest; with a seal that fits, as by someone who made it up."""
    (folder / "1" / "manifest").mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(data)
        if isinstance(content, dict) and "seal" in content:
            body = {key: value for key, value in content.items() if key != "seal"}
            data = json.dumps(body | {"seal": manifest._sha256(body)}).encode()
    (folder / "1" / "manifest" / "metadata").write_bytes(data)
    for step in ("latest", "best"):
        with contextlib.suppress(UserError):
            loading.load(folder, step=step)
    with contextlib.suppress(UserError, manifest.Damaged):
        assert store.read_manifest(folder / "1").digest


def weights(folder: pathlib.Path, data: bytes) -> None:
    """Any file of a checkpoint's arrays."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(folder / "seed_run", run)
    files = sorted(path for path in (run / "1" / "state").rglob("*") if path.is_file())
    files[data[0] % len(files) if data else 0].write_bytes(data[1:])
    with contextlib.suppress(UserError):
        loading.load(run, extra=True)


def torch_files(folder: pathlib.Path, data: bytes) -> None:
    """Weights of PyTorch: any file; a pickle in a zip that is intact; one in the legacy format."""
    path, rest = folder / "weights.pth", data[1:]
    kept = {"0": np.zeros(6, "f4")}
    if not data or data[0] % 3 == 0:
        path.write_bytes(rest)
    else:
        write = torch_writer.write_zip if data[0] % 3 == 1 else torch_writer.write_legacy
        write(path, {}, pickle_bytes=rest, kept=kept)
    with contextlib.suppress(UserError):
        importing.read(path)


def runs(folder: pathlib.Path, data: bytes) -> None:
    """What a run keeps beside its checkpoints, as it resumes and as a report reads it."""
    for name in ("config.json", "metrics.jsonl", "summary.json", "cases.csv"):
        (folder / name).write_bytes(data)
    config = config_lib.from_dict({"stage": "pretrain", "seed": 0})
    for read in (
        lambda: record.check_workdir(folder, config),
        lambda: record.read_facts(folder),
        lambda: metrics_file.read_metrics(folder),
        lambda: report_results.read_training(folder),
        lambda: report_results.read_evaluation(folder),
        lambda: metrics_file.JsonLinesWriter(folder / "metrics.jsonl", start_step=3).close(),
    ):
        with contextlib.suppress(UserError):
            read()


def trials(folder: pathlib.Path, data: bytes) -> None:
    """Results, failures and claims of a sweep's trials."""
    shutil.rmtree(folder / "trials", ignore_errors=True)
    for name in ("result.json", "attempts/1.json", "failures/1.json"):
        path = folder / "trials" / KEY / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    opened = open_store(folder)
    records = Records(opened, {"name": "x", "fingerprint": "f" * 64})
    for read in (
        lambda: records.result(KEY),
        lambda: records.failures(KEY),
        lambda: Claims(opened, 60.0).take(KEY),
    ):
        with contextlib.suppress(UserError):
            read()


def flags(folder: pathlib.Path, data: bytes) -> None:
    """Arguments of configs, durations, options, and the command line."""
    text = data.decode("utf-8", "replace")
    first, _, rest = text.partition("\n")
    config = pretrain.get_config("size=tiny")
    for read in (
        lambda: config_lib.check(pretrain.get_config(text)),
        lambda: config_lib.check(finetune.get_config(text)),
        lambda: config_lib.steps_of(text, key="train_for", batch_size=4, examples=40, total=100),
        lambda: options.explicit(_OPTIONS, options.from_command_line(text.split())),
        lambda: main_module.parse_flags(
            ["main", "--config=configs/evaluate.py", f"--config.{first}", *rest.splitlines()]
        ),
        lambda: config_lib.differences(config_lib.to_dict(config), {text: {text: text}}),
    ):
        with contextlib.suppress(UserError, SystemExit):  # --help ends the process
            read()


def dicoms(folder: pathlib.Path, data: bytes) -> None:
    """A DICOM run: a frame, and a segmentation of it for an odd first byte."""
    path = folder / "x.dcm"
    path.write_bytes(data[1:])
    with contextlib.suppress(UnreadableCase):
        case = dicom.open_dicom(path)
        for index in {0, case.frames - 1}:
            frame = case.read(index)
            assert frame.shape == (case.height, case.width) and frame.dtype.kind == "u"
        if data[0] % 2:
            mask = np.zeros(frame.shape, bool)
            seg.write(folder / "seg.dcm", source=case, masks={0: mask}, algorithm_version="1")


_OPTIONS = {
    "seed": options.Option(0, ""),
    "share": options.Option(0.5, ""),
    "name": options.Option("x", ""),
    "on": options.Option(True, ""),
}
TARGETS: dict[str, Callable[[pathlib.Path, bytes], None]] = {
    function.__name__: function
    for function in (
        images,
        dataset,
        manifests,
        weights,
        torch_files,
        runs,
        trials,
        flags,
        dicoms,
    )  # fmt: skip
}
STRUCTURED = ("dataset", "manifests", "runs", "trials")
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1e308,
    10**400,
    float("nan"),
    "",
    "NaN",
    "\ud800",
    [],
    {},
    [[]],
    "x" * 99,
)


def mutate_json(data: bytes, size: int, seed: int) -> bytes:
    """Exchanges a value somewhere in the JSON, three times of four; else any bytes."""
    rng = random.Random(seed)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return atheris.Mutate(data, size)
    if rng.random() < 0.25 or not isinstance(content, dict | list) or not content:
        return atheris.Mutate(data, size)
    node: Any = content
    while True:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
            node = node[key]
            continue
        if isinstance(node, dict) and rng.random() < 0.2:
            del node[key]
        else:
            node[key] = rng.choice(ODD)
        return json.dumps(content).encode()[:size]


def _is_decoder(event: str, values: tuple[Any, ...]) -> bool:
    """Whether the program is the decoder that may be lost, and is started again."""
    return event == "subprocess.Popen" and str(gdcm_process.WORKER) in values[1]


def main(arguments: list[str]) -> None:
    """TARGET FOLDER SECONDS; the folder has the seeds in corpus/."""
    name, place, seconds = arguments
    folder, target = pathlib.Path(place), TARGETS[name]

    def refuse(event: str, values: tuple[Any, ...]) -> None:
        if event in FORBIDDEN and not _is_decoder(event, values):
            raise RuntimeError(f"a file made its reader do {event}{values}")

    def one(data: bytes) -> None:
        target(folder / "work", data)

    structured = {"custom_mutator": mutate_json} if name in STRUCTURED else {}
    flags_of_libfuzzer = [f"-max_total_time={seconds}", "-seed=1", "-timeout=20", "-max_len=20000",
                          "-rss_limit_mb=3000", "-verbosity=0", "-print_final_stats=1",
                          f"-artifact_prefix={folder}/"]  # fmt: skip
    atheris.Setup(["fuzz", *flags_of_libfuzzer, str(folder / "corpus")], one, **structured)
    for path in sorted((folder / "corpus").iterdir()):
        one(path.read_bytes())  # imports what is imported late, before anything is refused
    sys.addaudithook(refuse)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])

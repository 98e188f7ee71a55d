"""From inputs to files: reads, predicts, picks, writes; what fails is listed, the rest goes on."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cmunet_jax import qca
from cmunet_jax.imaging import inputs, seg
from cmunet_jax.imaging.case import Case, Spacing, UnreadableCase
from cmunet_jax.imaging.inputs import Input, Refused
from cmunet_jax.predict import best, masks, network, outputs, pictures, record
from cmunet_jax.predict.network import Frame, How, Network, Probability
from cmunet_jax.predict.outputs import Staging

FRAMES = ("all", "best")
BURNED_IN = ("withhold", "keep")
WITHHELD = "the file says that its pixels hold annotations: no picture of it is written"
NO_SEGMENTATION = "no DICOM segmentation"
NO_SPACING = "no pixel spacing is known: nothing was removed for its length in mm"


@dataclass(frozen=True)
class Options:
    """What is made of the inputs: see configs/predict.py, which explains each.

    Attributes:
      how: frames through the networks.
      rules: probabilities to masks.
      frames: one of FRAMES.
      probability: one of `outputs.PROBABILITIES`.
      segmentation: DICOM SEG for DICOM inputs.
      qca: quantitative coronary analysis of each mask.
      burned_in: one of BURNED_IN.
      spacing: mm per pixel that replaces what the inputs say; 0: what they say.
      algorithm: version that a DICOM SEG names, up to 64 characters.
    """

    how: How = How()
    rules: masks.Rules = masks.Rules()
    frames: str = "all"
    probability: str = "png"
    segmentation: bool = True
    qca: bool = False
    burned_in: str = "withhold"
    spacing: float = 0.0
    algorithm: str = ""


@dataclass(eq=False)
class Job:
    """One case on its way.

    Attributes:
      number: of its input.
      item: the input.
      case: it.
      names: of the outputs of each frame.
      notes: for predictions.json.
      unmeasured: why frames have no measurements, by index: threads write them, in any order.
      entries: of the frames that are done.
      failed: whether it is of no use any more.
    """

    number: int
    item: Input
    case: Case
    names: list[str]
    notes: list[str] = field(default_factory=list)
    unmeasured: dict[int, str] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)
    failed: bool = False


@dataclass
class Outcome:
    """What came of it.

    Attributes:
      cases: entries of predictions.json.
      failed: inputs that could not be used.
      unsegmented: DICOMs that were used, but whose DICOM SEG could not be written.
      names: (path, id) of those that could, for the screen only.
      frames: how many were predicted.
    """

    cases: list[dict[str, Any]] = field(default_factory=list)
    failed: list[Refused] = field(default_factory=list)
    unsegmented: list[Refused] = field(default_factory=list)
    names: list[tuple[str, str]] = field(default_factory=list)
    frames: int = 0


@dataclass(frozen=True)
class _Made:
    """A frame with its mask."""

    found: Probability[Job]
    mask: NDArray[np.bool_] | None

    @property
    def evidence(self) -> float:
        if self.found.values is None or self.mask is None:
            return 0.0
        return best.evidence(self.found.values, self.mask)


class _Run:
    """Holds what the steps of one run share."""

    def __init__(self, options: Options, staging: Staging, bar: tqdm[Any]):
        self.options = options
        self.staging = staging
        self.bar = bar
        self.outcome = Outcome()
        self._taken: set[str] = set()
        self._drawing = threading.Lock()  # matplotlib is not made for threads

    def read(self, items: Sequence[Input]) -> Iterator[Frame[Job]]:
        """Opens the inputs one after the other and yields their frames as they are asked for."""
        for number, item in enumerate(items):
            try:
                case = inputs.distinct(inputs.open_case(item), self._taken)
            except UnreadableCase as error:
                self._refuse(item, str(error))
                self.bar.total -= 1
                continue
            job = self._job(number, item, case)
            self.bar.total += case.frames - 1
            for index in range(case.frames):
                if job.failed:  # a frame before this one could not be used
                    self.bar.total -= case.frames - index
                    break
                try:
                    image = inputs.read_frame(case, index)
                except UnreadableCase as error:
                    self.fail(job, index, str(error))
                    self.bar.total -= case.frames - index
                    break
                yield Frame(job, index, image)
                del image

    def _job(self, number: int, item: Input, case: Case) -> Job:
        if self.options.spacing:
            mm = self.options.spacing
            case = replace(case, spacing=Spacing(mm, mm, "config"))
        job = Job(number, item, case, inputs.frame_names(case), [*case.notes])
        if case.burned_in and self.options.burned_in != "keep":
            job.notes.append(WITHHELD)
        rules = self.options.rules
        if rules.min_length and rules.unit == "mm" and case.spacing is None:
            job.notes.append(NO_SPACING)
        return job

    def fail(self, job: Job, index: int, reason: str) -> None:
        """Gives a case up because of one frame: half a run could pass for a whole one."""
        if not job.failed:
            job.failed = True
            where = f"frame {index}: " if job.case.frames > 1 else ""
            self._refuse(job.item, where + reason)

    def _refuse(self, item: Input, reason: str) -> None:
        self.outcome.failed.append(Refused(str(item.path), item.label, reason))

    def mask(self, found: Probability[Job]) -> _Made:
        """Adds the mask."""
        if found.values is None:
            return _Made(found, None)
        spacing = found.frame.owner.case.spacing
        return _Made(found, masks.make(found.values, self.options.rules, spacing))

    def choose(self, made: Iterator[_Made]) -> Iterator[_Made]:
        """Yields the frames to write: all of a run, or its best-filled one."""
        for job, group in itertools.groupby(made, key=lambda m: m.found.frame.owner):
            counted = self._count(job, group)
            if self.options.frames == "all":
                yield from counted
            else:
                yield best.best_filled(counted, lambda m: m.evidence)

    def _count(self, job: Job, group: Iterator[_Made]) -> Iterator[_Made]:
        for made in group:
            if made.found.error:
                self.fail(job, made.found.frame.index, made.found.error)
            self.outcome.frames += 1
            self.bar.update()
            yield made

    def write(self, made: _Made) -> tuple[Job, dict[str, Any] | None]:
        """Writes the files of one frame; returns its entry."""
        frame, probability, mask = made.found.frame, made.found.values, made.mask
        job = frame.owner
        if job.failed or probability is None or mask is None:
            return job, None
        name, shown = job.names[frame.index], WITHHELD not in job.notes
        entry: dict[str, Any] = {"index": frame.index, "frame": None, "overlay": None, "qca": None}
        put, picture = self.staging.put, np.full(mask.shape, 255, np.uint8)
        if shown:
            picture = pictures.to_8_bit(frame.image)
            entry["frame"] = put(f"frames/{name}.png", outputs.png(picture))
            drawn = outputs.png(pictures.overlay(picture, mask))
            entry["overlay"] = put(f"overlays/{name}.png", drawn)
        entry["mask"] = put(f"masks/{name}.png", outputs.png(mask.astype(np.uint8) * 255))
        kind = self.options.probability
        entry["probability"] = outputs.put_probability(self.staging, name, probability, kind=kind)
        entry["artery_pixels"] = int(np.count_nonzero(mask))
        if self.options.qca:
            try:
                entry["qca"] = self._analyse(job.case, name, mask, probability, picture)
            except qca.TooManySegments as error:
                where = f"frame {frame.index}: " if job.case.frames > 1 else ""
                job.unmeasured[frame.index] = f"{where}{error}"
        return job, entry

    def _analyse(
        self,
        case: Case,
        name: str,
        mask: NDArray[np.bool_],
        probability: NDArray[np.float32],
        picture: NDArray[np.uint8],
    ) -> str:
        """Writes the measurements of a mask; returns the name of their JSON.

        A threshold of 0 or 1 has no contour between pixels: that of the mask is measured.

        Raises:
          TooManySegments: nothing was written.
        """
        spacing = (case.spacing.rows_mm, case.spacing.columns_mm) if case.spacing else None
        threshold = self.options.rules.threshold
        analysis = qca.analyse(
            mask,
            spacing=spacing,
            probability=probability if 0 < threshold < 1 else None,
            threshold=threshold,
        )
        qca.write_csv(analysis, self.staging.path(f"qca/{name}.csv"))
        with self._drawing:
            qca.draw(picture, analysis, self.staging.path(f"qca/{name}.png"))
        return self.staging.put(f"qca/{name}.json", outputs.to_json(qca.to_json(analysis)))

    def finish(self, job: Job) -> None:
        """Closes a case: its segmentation and its entry, or nothing of it."""
        if job.failed:
            for entry in job.entries:
                for path in _files(entry):
                    self.staging.forget(path)
            return
        segmentation = None
        if job.case.kind == "dicom" and self.options.segmentation:
            segmentation = self._segment(job)
        job.notes.extend(job.unmeasured[index] for index in sorted(job.unmeasured))
        entry = record.case_entry(job.case, job.entries, segmentation=segmentation, notes=job.notes)
        self.outcome.cases.append(entry)
        self.outcome.names.append((str(job.item.path), job.case.id))

    def _segment(self, job: Job) -> str | None:
        relative = f"segmentations/{job.case.id}.dcm"
        stored = outputs.StoredMasks(
            self.staging, {entry["index"]: entry["mask"] for entry in job.entries}
        )
        try:
            seg.write(
                self.staging.path(relative),
                source=job.case,
                masks=stored,
                algorithm_version=self.options.algorithm,
            )
        except UnreadableCase as error:
            job.notes.append(f"{NO_SEGMENTATION}: {error}")
            refused = Refused(str(job.item.path), job.item.label, f"{NO_SEGMENTATION}: {error}")
            self.outcome.unsegmented.append(refused)
            return None
        return relative


def _files(entry: dict[str, Any]) -> Iterator[str]:
    yield from (entry[key] for key in ("frame", "mask", "probability", "overlay") if entry[key])
    if entry["qca"]:
        stem = entry["qca"].removesuffix(".json")
        yield from (f"{stem}{end}" for end in (".json", ".csv", ".png", "_segments.csv"))


def run(
    found: inputs.Found,
    networks: Sequence[Network],
    options: Options,
    staging: Staging,
    *,
    workers: int,
    progress: bool = True,
) -> Outcome:
    """Predicts every input and writes its files into `staging`, which the caller publishes.

    A case with a frame that cannot be read or prepared fails whole, and leaves no file.

    Args:
      found: what to predict, and what was refused before.
      networks: one or several, whose probabilities are averaged.
      options: see there.
      staging: where to.
      workers: threads that prepare and write while the device computes.
      progress: whether to show a bar.

    Raises:
      UserError: a network diverged.
      OSError: a file cannot be written.
    """
    most = max(2 * workers, 2)

    def pixels(item: Any) -> int:
        return int((item if isinstance(item, Probability) else item.found).frame.image.size)

    bar = tqdm(total=len(found.inputs), unit="frame", disable=not progress, mininterval=0.5)
    with bar, ThreadPoolExecutor(workers) as pool, contextlib.ExitStack() as stack:
        this = _Run(options, staging, bar)
        probabilities = network.run(networks, this.read(found.inputs), options.how, pool=pool)
        made = network.ahead(pool, this.mask, probabilities, most=most, pixels=pixels)
        written = network.ahead(pool, this.write, this.choose(made), most=most, pixels=pixels)
        # What is left of the chain is stopped before the threads are, if one of its parts fails.
        generators: tuple[Any, ...] = (probabilities, made, written)
        for generator in generators:
            stack.callback(generator.close)
        for job, group in itertools.groupby(written, key=lambda pair: pair[0]):
            job.entries.extend(entry for _, entry in group if entry is not None)
            this.finish(job)
    this.outcome.failed = inputs.numbered([*found.refused, *this.outcome.failed])
    return this.outcome

"""How right the measurements of cmunet_jax/qca are: the tables of docs/qca.md.

python -m tests.qca.accuracy                            # tubes and trees of known diameter
python -m tests.qca.accuracy --only trees               # one of these tables
python -m tests.qca.accuracy --data DIR --split train   # the masks of a built data set
python -m tests.qca.accuracy --predictions DIR          # both contours in a run of predict
"""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from scipy.spatial import cKDTree

from cmunet_jax import qca
from cmunet_jax.predict import record
from cmunet_jax.qca import centreline, graph
from tests.qca import vessels
from tfds_angio.angio_synthetic import projection, tree
from tfds_angio.dataset import AngioDataset

WIDTHS = (4, 6, 8, 12, 20)
KINDS = ("straight", "curved", "tapering", "stenosed", "bifurcating")
Parts = list[vessels.Tube]
Shape = tuple[int, int]
Errors = dict[str, list[np.ndarray]]
# What the contour is measured from, beside a mask of pixels whose centres are inside.
MAPS: dict[str, Callable[[Parts, Shape], np.ndarray] | None] = {
    "mask": None,
    "coverage": lambda parts, shape: vessels.coverage(*parts, shape=shape),
    "rise 1 px": lambda parts, shape: vessels.sigmoid(*parts, shape=shape, rise=1.0),
    "rise 4 px": lambda parts, shape: vessels.sigmoid(*parts, shape=shape, rise=4.0),
    "half, logits": lambda parts, shape: vessels.sigmoid(*parts, shape=shape, rise=3.0, coarse=2),
    "half, coverage": lambda parts, shape: vessels.coverage(*parts, shape=shape, coarse=2),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.qca.accuracy", description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, help="folder of a built data set")
    parser.add_argument("--split", default="train")
    parser.add_argument("--predictions", type=pathlib.Path, help="workdir of configs/predict.py")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=20, help="vessels of each kind and width")
    tables = (diameters, estimators, directions, stenoses, trees)
    parser.add_argument("--only", choices=[table.__name__ for table in tables])
    options = parser.parse_args(argv)
    if options.data:
        dataset(options.data, options.split, options.images)
        return 0
    if options.predictions:
        predictions(options.predictions, options.images)
        return 0
    for table in tables:
        if options.only in (None, table.__name__):
            table(options.repeats)
    return 0


def row(*cells: object) -> None:
    print("| " + " | ".join(str(c) for c in cells) + " |", flush=True)


def of(errors: list[np.ndarray]) -> list[str]:
    """Bias, SD, 95th percentile and maximum of the absolute error."""
    e = np.concatenate(errors)
    size = np.abs(e)
    return [
        f"{e.mean():+.2f}",
        f"{e.std():.2f}",
        f"{np.quantile(size, 0.95):.2f}",
        f"{size.max():.2f}",
    ]


def tubes(kind: str, width: float, repeats: int) -> Iterator[tuple[Parts, Shape]]:
    """Random vessels of one kind: every offset to the grid, and every direction.

    Every second one runs exactly along the rows, the columns or a diagonal, where it is straight.
    """
    rng = np.random.default_rng([len(kind), int(10 * width)])
    length = max(80.0, 10.0 * width)
    side = 2 * (int(0.65 * length) + 10)
    for number in range(repeats):
        angle, middle = rng.uniform(0, 2 * np.pi), tuple(side / 2 + rng.uniform(0, 1, 2))
        if number % 2:
            angle = number // 2 % 8 * np.pi / 4
        diameter: object = float(width)
        curvature = rng.uniform(0.3, 1) / (2 * width + 12) if kind == "curved" else 0.0
        if kind == "tapering":
            diameter = vessels.taper(1.25 * width, 0.75 * width)
        if kind == "stenosed":
            lost, spread = rng.uniform(20, 60), rng.uniform(0.75, 1.5) * width / length
            diameter = vessels.narrowing(width, percent=lost, at=0.5, spread=spread)
        arc = min(length, 1.3 * np.pi / curvature) if curvature else length
        parts = [
            vessels.tube(
                angle=angle, length=arc, diameter=diameter, curvature=curvature, middle=middle
            )
        ]
        if kind == "bifurcating":
            side_branch = vessels.tube(
                angle=angle + np.deg2rad(rng.uniform(35, 90)),
                length=length,
                diameter=max(0.7 * width, 4.0),
                middle=middle,
            )
            parts.append(side_branch.half())
        yield parts, (side, side)


def analyse(parts: Parts, shape: Shape, name: str = "mask") -> qca.Analysis:
    """The analysis of vessels, the contour measured from one of `MAPS`."""
    if (made := MAPS[name]) is None:
        return qca.analyse(vessels.draw(*parts, shape=shape), spacing=None)
    probability = made(parts, shape)
    return qca.analyse(probability > 0.5, spacing=None, probability=probability)


def errors_of(analysis: qca.Analysis, parts: Parts) -> np.ndarray:
    """Error, true diameter and direction [K, 3] (px, px, degrees from the grid or its diagonal).

    Of all measured points; a segment belongs to the tube that it follows.
    """
    out = [np.zeros((0, 3))]
    for s in analysis.segments:
        true, away = zip(*(vessels.truth(t, s.points) for t in parts))
        right = true[int(np.argmin([np.median(a) for a in away]))]
        way = np.rad2deg(np.arctan2(*np.gradient(s.points, axis=0).T)) % 45
        found = np.stack([s.diameter_px - right, right, np.minimum(way, 45 - way)], axis=1)
        out.append(found[np.isfinite(found[:, 0])])
    return np.concatenate(out)


def diameters(repeats: int) -> None:
    print("\nError of the diameter (px) by what the contour is measured from")
    row("vessel", "width", "mask: bias, SD, 95 % of points below, max", "others: bias, 95 %, max")
    everything: Errors = {name: [] for name in MAPS}
    lengths: Errors = {name: [] for name in MAPS}
    for kind in KINDS:
        for width in (2.5, *WIDTHS):
            cells: list[str] = []
            for name in MAPS:
                found = []
                for parts, shape in tubes(kind, width, repeats):
                    analysis = analyse(parts, shape, name)
                    found.append(errors_of(analysis, parts))
                    if width >= 4 and len(parts) == len(analysis.segments) == 1:
                        end = analysis.segments[0].position_px[-1]
                        lengths[name].append(np.array([end - parts[0].length]))
                everything[name] += found if width >= 4 else []
                numbers = of([e[:, 0] for e in found])
                cells += numbers if name == "mask" else [numbers[0], *numbers[2:]]
            row(kind, width, *cells)
    print("\nPoints whose true diameter is 4 px or more, of all vessels of 4 px and more")
    row(
        "contour", "points", "bias", "SD", "95 %", "max", "beyond 0.5 px", "of these > 6°", "length"
    )
    for name, parts_of in everything.items():
        error, true, way = np.concatenate(parts_of).T
        wide = true >= 4
        beyond = wide & (np.abs(error) > 0.5)
        long = np.concatenate(lengths[name])
        row(
            name,
            np.count_nonzero(wide),
            *of([error[wide]]),
            np.count_nonzero(beyond),
            np.count_nonzero(beyond & (way > 6)),
            f"{long.mean():+.2f}, {np.abs(long).max():.2f}",
        )


def estimators(repeats: int) -> None:
    """The contour distance beside distance transforms, at the same points of the centreline."""
    print("\nEstimators on straight, curved and stenosed vessels")
    row("estimator", "width", "bias", "SD", "95 %", "max")
    for width in WIDTHS:
        found: Errors = {}
        for kind in ("straight", "curved", "stenosed"):
            for parts, shape in tubes(kind, width, repeats):
                mask = vessels.draw(*parts, shape=shape)
                for s in qca.analyse(mask, spacing=None).segments:
                    _compare(found, s, mask, parts[0])
        for name, errors in found.items():
            row(name, width, *of(errors))


def _compare(found: Errors, s: qca.Segment, mask: np.ndarray, t: vessels.Tube) -> None:
    radius = graph.inscribed_radius(mask)
    seen = np.isfinite(s.diameter_px)
    points = s.points[seen]
    true = vessels.truth(t, points)[0]
    normals = centreline.normals_of(s.points)[seen]
    raw = centreline.soften(mask, 1e-3)
    halves = centreline.half_widths(raw, points, normals, reach=30.0)
    nearest = np.rint(points).astype(int)
    estimates = {
        "contours of the softened mask, along the normal (used)": s.diameter_px[seen],
        "contours of the bare mask, along the normal": halves.sum(axis=1),
        "2 × distance transform at the centreline": 2 * centreline.sample(radius, points),
        "the same, less 1": 2 * centreline.sample(radius, points) - 1,
        "2 × distance transform at the nearest pixel": 2.0 * radius[tuple(nearest.T)],
    }
    for name, value in estimates.items():
        found.setdefault(name, []).append((value - true)[np.isfinite(value)])


def directions(_: int) -> None:
    """Along the grid and its diagonal the mask itself is wrong: it jumps by whole rows."""
    print("\nStraight vessels of 4.3 to 8.8 px by direction: worst mean, worst point (px)")
    row("degrees", *MAPS)
    for degrees in (0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 26.57, 40.0, 44.0, 45.0):
        worst = np.zeros((len(MAPS), 2))
        for width in (4.3, 4.9, 6.5, 8.8):
            for offset in (0.0, 0.25, 0.5, 0.75):
                middle = (60 + offset, 60 + offset / 3)
                t = vessels.tube(
                    angle=np.deg2rad(degrees), length=90, diameter=width, middle=middle
                )
                for at, name in enumerate(MAPS):
                    e = errors_of(analyse([t], (120, 120), name), [t])[:, 0]
                    worst[at] = np.maximum(worst[at], [abs(e.mean()), np.abs(e).max()])
        row(degrees, *(f"{mean:.2f}, {most:.2f}" for mean, most in worst))


def stenoses(repeats: int) -> None:
    print("\nPercent diameter stenosis of a vessel that tapers by a fifth: bias, SD, max, given")
    row("width", "true", *MAPS)
    for width in WIDTHS[1:]:
        for percent in (0, 30, 50, 70):
            cells = []
            for name in MAPS:
                found = [
                    s.percent_diameter_stenosis
                    for t, shape in _stenosed(width, percent, repeats)
                    for s in analyse([t], shape, name).segments
                ]
                error = np.array([f for f in found if f is not None]) - percent
                most = np.abs(error).max(initial=0)
                cells.append(
                    f"{error.mean():+.1f}, {error.std():.1f}, {most:.1f}, {len(error)}/{len(found)}"
                )
            row(width, percent, *cells)


def _stenosed(width: int, percent: int, repeats: int) -> Iterator[tuple[vessels.Tube, Shape]]:
    rng = np.random.default_rng([width, percent])
    length = 14.0 * width
    side = 2 * (int(0.6 * length) + 10)
    for _ in range(repeats):
        spread = rng.uniform(0.75, 1.25) * width / length
        healthy = vessels.taper(1.1 * width, 0.9 * width)
        diameter = vessels.narrowing(
            healthy, percent=percent, at=rng.uniform(0.4, 0.6), spread=spread
        )
        yield (
            vessels.tube(
                angle=rng.uniform(0, 2 * np.pi),
                length=length,
                diameter=diameter,
                curvature=rng.uniform(0, 1) / length,
                middle=tuple(side / 2 + rng.uniform(0, 1, 2)),
            ),
            (side, side),
        )


def trees(repeats: int) -> None:
    """Whole synthetic trees in projection: the truth is the radius of the nearest disc."""
    print("\nSynthetic coronary trees, 512 × 512")
    row("local width", "clear of other arteries", "bias", "SD", "95 %", "max", "points")
    found: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for patient in range(repeats):
        rng = np.random.default_rng([5, patient])
        arteries = tree.grow_tree(rng, ("left", "right")[patient % 2])
        main = [b for b in arteries.branches if b.level < 2]
        middle = np.concatenate([b.points for b in main]).mean(axis=0)
        carm = projection.CArm(20.0, -20.0, 512, 140.0, middle)
        parts = [projection.tube(carm, b.points, b.radius) for b in main]
        discs = projection.join(parts)
        branch = np.repeat(np.arange(len(parts)), [len(p.radius) for p in parts])
        for s in qca.analyse(projection.silhouette(discs, 512), spacing=None).segments:
            seen = np.isfinite(s.diameter_px)
            away = np.linalg.norm(s.points[seen, None, ::-1] - discs.xy, axis=-1)
            nearest = away.argmin(axis=1)
            own = branch == branch[nearest][:, None]
            gap = np.where(own, np.inf, away - discs.radius).min(axis=1)
            clear = gap > discs.radius[nearest] + 1
            true = 2 * discs.radius[nearest]
            pairs = np.stack([s.diameter_px[seen] - true, true], axis=1)
            for key in found:
                found[key].append(pairs[clear == key])
    for key, name in ((True, "yes"), (False, "no")):
        e, w = np.concatenate(found[key]).T
        for low, high in ((2, 4), (4, 6), (6, 10), (10, 30)):
            some = (w >= low) & (w < high)
            row(f"{low} to {high} px", name, *of([e[some]]), np.count_nonzero(some))


def dataset(folder: pathlib.Path, split: str, images: int) -> None:
    """Graphs of real masks: what they cover, what is measured, how long it takes."""
    source = AngioDataset(folder).source(split)
    chosen = np.random.default_rng(0).permutation(len(source))[:images]
    seconds, covered, measured, counts = [], [], [], []
    reasons: dict[str, int] = {}
    for index in chosen.tolist():
        mask = source[index]["mask"][..., 0] > 0
        start = time.process_time()
        analysis = qca.analyse(mask, spacing=None)
        seconds.append(time.process_time() - start)
        covered.append(coverage(mask, analysis))
        finite = [np.isfinite(s.diameter_px) for s in analysis.segments]
        measured.append(np.concatenate(finite).mean() if finite else 0.0)
        counts.append((len(analysis.segments), len(analysis.bifurcations)))
        for s in analysis.segments:
            key = (s.why_no_stenosis or "given").split(" px")[0].rstrip("0123456789.")
            reasons[key] = reasons.get(key, 0) + 1
    shares = np.array(covered)
    print(
        f"{len(chosen)} masks; {1e3 * np.mean(seconds):.0f} ms a mask, at most {max(seconds):.2f} s"
    )
    print(f"segments, bifurcations (median): {np.median(counts, axis=0)}; most {np.max(counts, 0)}")
    for least in (0.9, 0.95, 0.99):
        print(
            f"at least {least:.0%} of the mask covered: {np.mean(shares >= least):.1%} of the masks"
        )
    print(f"worst coverage {shares.min():.3f} (image {chosen[shares.argmin()]});")
    print(f"measured share of points {np.mean(measured):.3f}")
    for key, number in sorted(reasons.items(), key=lambda x: -x[1]):
        print(f"{number:5d} segments: {key}")


def predictions(folder: pathlib.Path, images: int) -> None:
    """Both contours of real probabilities (threshold 0.5), beside that at four times the size."""
    found: dict[str, list[np.ndarray]] = {"mask": [], "probability": []}
    percent: dict[str, list[float]] = {name: [] for name in found}
    seconds = dict.fromkeys(found, 0.0)
    frames = [f for case in record.read(folder)["cases"] for f in case["frames"]][:images]
    segments = 0
    for frame in frames:
        mask = record.read_mask(folder / frame["mask"])
        probability = record.read_probability(folder / frame["probability"])
        p = probability.clip(1e-6, 1 - 1e-6)
        fine = cv2.resize(np.log(p / (1 - p)), None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR) > 0
        smooth = qca.Options(blur=2.0, bandwidth=16.0, mean=3.0)  # 0.5, 4 and 0.75 px of the frame
        large = qca.analyse(fine, spacing=None, options=smooth).segments
        points = np.concatenate([np.zeros((1, 2)), *(s.points for s in large)]) / 4 - 0.375
        true = np.concatenate([[np.nan], *(s.diameter_px for s in large)]) / 4
        for name in found:
            start = time.process_time()
            given = probability if name == "probability" else None
            analysis = qca.analyse(mask, spacing=None, probability=given)
            seconds[name] += time.process_time() - start
            for s in analysis.segments:
                away, nearest = cKDTree(points).query(s.points)
                error = s.diameter_px - true[nearest]
                error[(away > 0.5) | (true[nearest] < 4)] = np.nan
                found[name].append(error[np.isfinite(error)])
                percent[name].append(s.percent_diameter_stenosis or np.nan)
        segments += len(analysis.segments)
    print(f"\n{len(frames)} frames, {segments} segments: difference (px) from four times the size")
    row(
        "contour",
        "bias",
        "SD",
        "95 %",
        "max",
        "points",
        "beyond 0.5 px",
        "percentages",
        "s a frame",
    )
    for name, errors in found.items():
        e = np.concatenate(errors)
        given_ones = np.count_nonzero(np.isfinite(percent[name]))
        cost = f"{seconds[name] / len(frames):.3f}"
        row(name, *of([e]), len(e), np.count_nonzero(np.abs(e) > 0.5), given_ones, cost)


def coverage(mask: np.ndarray, analysis: qca.Analysis) -> float:
    """Share of the mask within the discs along the centrelines, one pixel wider than they fit."""
    radius = graph.inscribed_radius(mask)
    discs = np.zeros(mask.shape, np.uint8)
    for s in analysis.segments:
        inside = centreline.sample(radius, s.points)
        for (y, x), r in zip(np.rint(s.points).astype(int).tolist(), inside.tolist()):
            cv2.circle(discs, (x, y), int(np.ceil(r)) + 1, 1, -1)
    return float((discs > 0)[mask].mean()) if mask.any() else 1.0


if __name__ == "__main__":
    raise SystemExit(main())

"""The centreline graph of a mask: skeleton, bifurcations, branches; what is no vessel is taken off.

The skeleton is that of Lee, Kashyap & Chu (1994, through scikit-image), which keeps what is
connected; Zhang & Suen's (1984) takes vessels along a diagonal away altogether. Tracing is written
out here: skan (BSD) does that too, but brings numba and pandas for one call and knows nothing of
the radius by which spurs are judged, so that most of what follows would remain.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, find_objects, label
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.morphology import skeletonize

from tfds_angio.errors import UserError

# Segments of the skeleton of a mask that is measured, before spurs are taken off it: a coronary
# tree has tens, a speckled mask thousands, and the time grows with their square. The viewer shows
# as many at most.
MAX_SEGMENTS = 2000

Mask = NDArray[np.bool_]
Points = NDArray[np.float64]


class TooManySegments(UserError):
    """The skeleton of a mask has more than `MAX_SEGMENTS` segments."""


@dataclass(frozen=True)
class Branch:
    """A piece of the skeleton between two nodes.

    Attributes:
        start: node at its first point.
        end: node at its last point; equal to `start` in a loop.
        points: [K, 2] (row, column) px, both nodes included.
    """

    start: int
    end: int
    points: Points

    @property
    def length(self) -> float:
        """Length of the line through its points (px)."""
        return float(np.linalg.norm(np.diff(self.points, axis=0), axis=1).sum())


@dataclass(frozen=True)
class Graph:
    """Branches and the nodes that they share.

    Attributes:
        nodes: [N, 2] (row, column) px; those that no branch names are leftovers.
        branches: of all components.
        ignored: components that were too short or too wide to be a vessel.
    """

    nodes: Points
    branches: tuple[Branch, ...]
    ignored: int = 0

    def degrees(self) -> Counter[int]:
        """Ends of branches at each node: 1 a tip, 3 and more a bifurcation."""
        return Counter(node for b in self.branches for node in (b.start, b.end))


def inscribed_radius(mask: Mask) -> NDArray[np.float32]:
    """Radius [H, W] (px) of the disc around each pixel's centre that fits the mask, 0 outside.

    The exact distance to the centre of the nearest background pixel; the outside of the image is
    background. No half pixel is taken off: among the many background pixels along a contour some
    lie close to it, and twice the distance is right on average (docs/qca.md).
    """
    padded = np.pad(mask, 1).astype(np.uint8)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance, np.float32)[1:-1, 1:-1]


def fill_faults(mask: Mask) -> Mask:
    """The mask [H, W] without the holes that are faults, not gaps between vessels.

    A hole is a fault where its area is no more than the square of the inscribed radius of what
    lies beside it; the pixels that the grid leaves open in the fork of two vessels are among them.
    """
    filled = np.asarray(binary_fill_holes(mask), bool)
    holes, count = label(filled & ~mask)
    if not count:
        return mask
    # Of what is left around a hole: with it filled, a ring of a vessel would look like a blob.
    radius = inscribed_radius(mask)
    area = np.bincount(holes.ravel())
    fault = np.zeros(count + 1, bool)
    for number, box in enumerate(find_objects(holes), 1):
        near = tuple(slice(max(s.start - 3, 0), s.stop + 3) for s in box)
        fault[number] = area[number] <= float(radius[near].max()) ** 2
    return mask | fault[holes]


def without_blobs(mask: Mask, radius: NDArray[np.float32], *, widest: float) -> tuple[Mask, int]:
    """The mask [H, W] without the components that no artery comes near in width.

    Thinning takes as many rounds over the whole mask as the widest component has pixels in its
    radius, so that one filled disc would cost the cube of its side.

    Args:
        mask: bool [H, W].
        radius: `inscribed_radius(mask)`.
        widest: diameter (px) of the inscribed disc beyond which a component is none.

    Returns:
        What is left, and how many components were taken away.
    """
    if not (2 * radius > widest).any():
        return mask, 0
    parts, _ = label(mask, np.ones((3, 3)))
    wide = np.unique(parts[2 * radius > widest])
    return mask & ~np.isin(parts, wide), len(wide)


def centreline_graph(mask: Mask, radius: NDArray[np.float32], *, spur: float) -> Graph:
    """The pruned graph of a mask.

    A terminal branch is a spur, and taken off, where it reaches, with the disc at its tip, less
    than `spur` times the radius of the inscribed disc at the node that it leaves: it then hardly
    comes out of the vessel on which it sits (Shaked & Bruckstein 1998 compare such measures of
    protrusion). All spurs of a round go at once: of the two that run into the corners of a blunt
    end neither is the vessel's.
    Two bifurcations closer than their radius are one, as where two vessels cross. A component of
    less than twice its width in length is no vessel.

    Args:
        mask: bool [H, W].
        radius: `inscribed_radius(mask)`.
        spur: in radii, ≥ 0; 2 takes off what ends less than a radius outside the vessel.

    Returns:
        The graph; without branches for an empty mask.

    Raises:
        TooManySegments: before anything slow is done.
    """
    graph = _trace(np.asarray(skeletonize(np.array(mask, order="C"), method="lee"), bool))
    while True:
        pruned = _merge(_splice(_prune(graph, radius, spur)), radius)
        if len(pruned.branches) == len(graph.branches):
            return _vessels(pruned, radius)
        graph = pruned


def _trace(skeleton: Mask) -> Graph:
    """The graph of a skeleton [H, W]; every pixel is in one branch or one bifurcation."""
    pixels = np.argwhere(skeleton)
    edges = _edges(skeleton)
    crowded = np.bincount(edges.ravel(), minlength=len(pixels)) >= 3
    _check_count(edges, crowded)
    # Bifurcation pixels that touch are one node; the others fall apart into simple lines.
    inside = edges[:, crowded[edges].all(axis=0)]
    groups = connected_components(_adjacency(inside, len(pixels)), directed=False)[1][crowded]
    ids = np.unique(groups, return_inverse=True)[1]
    node_of = np.full(len(pixels), -1)
    node_of[crowded] = ids
    nodes = [pixels[node_of == i].mean(axis=0) for i in range(int(ids.max(initial=-1)) + 1)]
    around: list[list[int]] = [[] for _ in pixels]
    for a, b in edges.T.tolist():
        around[a].append(b)
        around[b].append(a)
    on_line = [[n for n in near if not crowded[n]] for near in around]
    branches, seen = [], crowded.copy()
    # Lines are entered at an end; what is then left are closed loops, entered anywhere.
    ends = [i for i in range(len(pixels)) if len(on_line[i]) < 2]
    for first in ends + list(range(len(pixels))):
        if seen[first]:
            continue
        line = _walk(first, on_line, seen)
        points = [pixels[i].astype(np.float64) for i in line]
        if len(on_line[first]) == 2:
            nodes.append(points[0])
            points.append(points[0])
            branches.append(Branch(len(nodes) - 1, len(nodes) - 1, np.array(points)))
            continue
        names = _ends(line, around, node_of)
        head, tail = ([nodes[n]] if n >= 0 else [] for n in names)
        for index, n in enumerate(names):
            if n < 0:
                names[index] = len(nodes)
                nodes.append(points[-index])
        branches.append(Branch(names[0], names[1], np.array(head + points + tail)))
    return Graph(np.array(nodes).reshape(-1, 2), tuple(branches))


def _edges(skeleton: Mask) -> NDArray[np.intp]:
    """Pairs [2, E] of neighbouring skeleton pixels, as numbers in the order of `np.argwhere`.

    Diagonal neighbours count only where no pixel beside the diagonal joins them already: without
    that every corner would be a triangle, and its pixels bifurcations.
    """
    number = np.full(np.add(skeleton.shape, 2), -1)
    number[1:-1, 1:-1][skeleton] = np.arange(np.count_nonzero(skeleton))
    here, below, right = number[:-1, :-1], number[1:, :-1], number[:-1, 1:]
    across = number[1:, 1:]
    straight = [(here, below), (here, right)]
    corner = (below < 0) & (right < 0)
    other = (here < 0) & (across < 0)
    pairs = [np.stack([a[k], b[k]]) for a, b in straight for k in [(a >= 0) & (b >= 0)]]
    pairs += [
        np.stack([a[k], b[k]])
        for a, b, free in ((here, across, corner), (below, right, other))
        for k in [(a >= 0) & (b >= 0) & free]
    ]
    return np.concatenate(pairs, axis=1)


def _check_count(edges: NDArray[np.intp], crowded: NDArray[np.bool_]) -> None:
    """Counts the lines into which the skeleton falls without its bifurcations."""
    simple = edges[:, ~crowded[edges].any(axis=0)]
    parts = connected_components(_adjacency(simple, len(crowded)), directed=False)[0]
    count = int(parts) - int(np.count_nonzero(crowded))  # each of those is a part of its own
    if count > MAX_SEGMENTS:
        raise TooManySegments(
            f"not measured: the skeleton of the mask has {count} segments, more than "
            f"{MAX_SEGMENTS}; a mask so speckled is no vessel tree"
        )


def _adjacency(edges: NDArray[np.intp], count: int) -> coo_array:
    return coo_array((np.ones(edges.shape[1], bool), (edges[0], edges[1])), (count, count))


def _walk(first: int, on_line: list[list[int]], seen: NDArray[np.bool_]) -> list[int]:
    """The pixels of the line through `first`, from there on; marks them as seen."""
    line = [first]
    seen[first] = True
    while following := [n for n in on_line[line[-1]] if not seen[n]]:
        line.append(following[0])
        seen[following[0]] = True
    return line


def _ends(line: list[int], around: list[list[int]], node_of: NDArray[np.intp]) -> list[int]:
    """Bifurcations at the first and the last pixel of a line, -1 where it ends freely."""
    at = [[int(node_of[n]) for n in around[i] if node_of[n] >= 0] for i in (line[0], line[-1])]
    if len(line) == 1:  # its neighbours were all found twice
        at = [at[0][:1], at[0][1:]]
    return [(found or [-1])[0] for found in at]


def radius_at(point: Points, radius: NDArray[np.float32]) -> float:
    """The largest inscribed disc (px) within a pixel of a point [2]: nodes are means of pixels."""
    row, column = (max(int(round(x)), 0) for x in point)
    near = radius[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
    return float(near.max(initial=0.0))


def _prune(graph: Graph, radius: NDArray[np.float32], spur: float) -> Graph:
    degrees = graph.degrees()

    def is_spur(branch: Branch) -> bool:
        ends = sorted((branch.start, branch.end), key=lambda node: degrees[node])
        if degrees[ends[0]] != 1 or degrees[ends[1]] < 3:
            return False
        tip, root = (radius_at(graph.nodes[node], radius) for node in ends)
        return branch.length + max(tip - 1, 0) < spur * root

    spurs = [is_spur(b) for b in graph.branches]
    kept = [b for b, gone in zip(graph.branches, spurs) if not gone]
    # A star of spurs alone is a blob: its longest branch stays and is judged with the components.
    held = {node for b in kept for node in (b.start, b.end)}
    stars: dict[int, Branch] = {}
    for branch, gone in zip(graph.branches, spurs):
        hub = branch.start if degrees[branch.start] >= 3 else branch.end
        if gone and hub not in held and branch.length > getattr(stars.get(hub), "length", 0.0):
            stars[hub] = branch
    return replace(graph, branches=(*kept, *stars.values()))


def _splice(graph: Graph) -> Graph:
    """Joins the branches that meet where no third one is."""
    at: dict[int, list[int]] = {}
    for index, branch in enumerate(graph.branches):
        at.setdefault(branch.start, []).append(index)
        at.setdefault(branch.end, []).append(index)
    left = set(range(len(graph.branches)))
    joined = []
    # From real nodes first; what is then left are closed loops, which keep one node.
    for node in sorted(at, key=lambda n: len(at[n]) == 2):
        for index in at[node]:
            if index not in left:
                continue
            parts, here = [], node
            while index in left:
                left.remove(index)
                branch = graph.branches[index]
                forward = branch.start == here
                parts.append(branch.points if forward else branch.points[::-1])
                here = branch.end if forward else branch.start
                if len(at[here]) == 2 and here != node:
                    index = next((i for i in at[here] if i in left), index)
            points = [parts[0], *(p[1:] for p in parts[1:])]
            joined.append(Branch(node, here, np.concatenate(points)))
    return replace(graph, branches=tuple(joined))


def _merge(graph: Graph, radius: NDArray[np.float32]) -> Graph:
    """Makes one node of bifurcations that lie within their radius of each other."""
    degrees = graph.degrees()
    reach = np.array([radius_at(node, radius) for node in graph.nodes])
    bridges = [
        b
        for b in graph.branches
        if min(degrees[b.start], degrees[b.end]) >= 3
        and b.length < max(reach[b.start], reach[b.end])
    ]
    if not bridges:
        return graph
    edges = np.array([(b.start, b.end) for b in bridges], int).T
    group = connected_components(_adjacency(edges, len(graph.nodes)), directed=False)[1]
    share = np.bincount(group)[:, None]
    nodes = np.stack([np.bincount(group, graph.nodes[:, i]) for i in (0, 1)], axis=1) / share
    wide = np.zeros(len(nodes))
    np.maximum.at(wide, group, reach)
    kept = []
    for branch in graph.branches:
        start, end = int(group[branch.start]), int(group[branch.end])
        # What ran beside a bridge is now a loop inside the bifurcation.
        if start == end and branch.length < 4 * wide[start]:
            continue
        points = branch.points.copy()
        points[0], points[-1] = nodes[start], nodes[end]
        kept.append(Branch(start, end, points))
    return Graph(nodes, tuple(kept))


def _vessels(graph: Graph, radius: NDArray[np.float32]) -> Graph:
    """Without the components that are too short for their width."""
    edges = np.array([(b.start, b.end) for b in graph.branches], int).reshape(-1, 2).T
    groups = connected_components(_adjacency(edges, len(graph.nodes)), directed=False)[1]
    parts: dict[int, list[Branch]] = {}
    for branch in graph.branches:
        parts.setdefault(int(groups[branch.start]), []).append(branch)
    kept: list[Branch] = []
    for part in parts.values():
        along = np.concatenate([np.rint(b.points).astype(int) for b in part])
        widest = float(radius[along[:, 0], along[:, 1]].max())
        # The centreline ends a radius before the contour, at either end.
        if sum(b.length for b in part) >= 2 * max(widest, 1.0):
            kept += part
    return Graph(graph.nodes, tuple(kept), len(parts) - len({int(groups[b.start]) for b in kept}))

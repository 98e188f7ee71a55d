"""The report of a run: result files in, one self-contained HTML page out.

`results` reads the files, `comparison` pairs the arms, `findings` puts numbers into words,
`figures` and `images` draw, `sections` arranges, `html` writes. Nothing here trains or predicts,
so a report can be written again anywhere from the files alone.
"""

from cmunet_jax.report.html import Arm, write

__all__ = ["Arm", "write"]

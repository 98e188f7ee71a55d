"""The report of a run: result files in, one self-contained HTML page out.

`results` reads the files, `comparison` pairs the arms, `findings` puts numbers into words,
`figures` and `images` draw, `sections` arranges, `html` writes. Nothing here trains or predicts,
so a report can be written again anywhere from the files alone.

A page of a whole study is written in the same way: `study` reads and computes, `charts` draws,
`blocks` and `study_parts` arrange, `study_page` writes; `frame` holds what both pages share.
"""

from cmunet_jax.report.html import Arm, write
from cmunet_jax.report.study_page import write_study

__all__ = ["Arm", "write", "write_study"]

"""A page on this machine that shows what a predict run holds, and saves corrected masks.

`confined` opens files of a folder and none outside it, `runs` reads a predict run and `pictures` a
list of images, both into a `catalogue`; `layers` and `analysis` check what the files hold. `labels`
writes what the user paints, `guard` decides who may ask, `app` answers and `server` listens.
`static/` is the page: plain files, no build step.
"""

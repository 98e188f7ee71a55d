"""Angiography data sets for TFDS, built and read without TensorFlow."""

import os

# Read once, when OpenCV is loaded: its own limit, 2**30 pixels, is memory for a hostile header.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**27))
# Our own line says what is wrong with a file; OpenCV names its C++ source beside that.
os.environ.setdefault("OPENCV_LOG_LEVEL", "FATAL")

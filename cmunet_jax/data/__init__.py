"""From TFDS examples to batches on the device."""

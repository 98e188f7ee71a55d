"""Users' angiograms as frames: image files, arrays and DICOM in; DICOM SEG out."""

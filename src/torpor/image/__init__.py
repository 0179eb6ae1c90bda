"""The image: one file, written and read in one pass. This package knows no kernel and no objects.

`fields` declares what a record holds (with `kinds` and `checks` behind it), `record` turns a declaration into code,
`format` has the image's own records, `writer` and `reader` are the two directions, and `describe` prints the
declarations as docs/image-format.md.
"""

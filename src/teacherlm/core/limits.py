"""How large, how deep and how slow what is read may be: a small file can be made to cost any memory or time.

The limits are far above what the project's own files and real datasets need. What is above one is refused in a line
that names it, before its memory is taken.
"""

MIB = 2**20

JSON_BYTES = 32 * MIB
"""Of a JSON file that is read whole: a manifest, a result, a configuration. (Records are read line by line.)"""
JSON_VALUES = 1_000_000
"""Lists and objects in such a file; an empty one of two letters takes some 80 bytes of memory."""
JSON_PARTS = 4_000_000
"""Values of all kinds in such a file or in a record; a text of one letter takes some 70 bytes of memory."""
JSON_DEPTH = 32
"""Lists and objects in one another; Arrow's files end at 64, Python's own recursion at some 900."""

YAML_BYTES = MIB // 4
"""Of a YAML file: a benchmark's or a model's has some thousand. Reading so much takes seconds."""
YAML_DEPTH = 16
"""Lists and mappings in one another."""
YAML_EXPANDED = 4_000_000
"""Letters and values of a YAML file once each alias (`*name`) is replaced by what it stands for."""

TEMPLATE_LETTERS = 20_000
"""Of the source of one template."""
TEMPLATE_WORK = 5_000_000
"""Letters that one rendering of a template may make, in its output and on the way to it."""
TEMPLATE_KEPT = 10_000_000
"""Letters and values that the filters, methods and slices of one rendering may return."""
TEMPLATE_BITS = 4000
"""Of a whole number that a template makes or counts with."""
LOOP_STEP = 20
"""What a step of a loop counts as, beside the letters that it makes."""
TEMPLATE_SECONDS = 10.0
"""Of processor time that one rendering may take."""

LINE_BYTES = 64 * MIB
"""Of one record in a file of JSON lines. It may have JSON_VALUES lists and objects."""
LIST_BYTES = 256 * MIB
"""Of a file of samples that is one JSON list, and is read whole."""
LIST_VALUES = 5_000_000
"""Lists and objects in such a file."""
LIST_PARTS = 8_000_000
"""Values of all kinds in such a file."""

ROW_COMMAS = 1_000_000
"""Of one row of a CSV file; the row may have LINE_BYTES letters, on one line or several."""
FIELDS = 60_000
"""Of all records of a dataset together: `datasets` takes up to a millisecond for each."""
INNER_FIELDS = 1000
"""Of the objects in one field, in all records together: the type of such a field is made anew at each new name."""

UNPACKED_BYTES, UNPACKED_TIMES = 64 * MIB, 200
"""A compressed file may unpack to so many bytes, and beyond them to so many times its own size. Text shrinks to a third
or a tenth; a file made to fill memory or a disk unpacks to a thousand times its size and more."""

PAGE_BYTES = 64_000_000
"""Of the samples on a report's page, as JSON: browsers have trouble with more."""
PAGE_SAMPLES = 20_000
PAGE_ROWS = 2000
"""Of one table on a page."""
PAGE_CODE_LETTERS = 1_000_000
"""Of the manifests that a page shows in words."""
PAGE_MISSING = 200
"""Lines of what is missing on a page."""
PAGE_POINTS = 5000
"""Of one line of a picture."""

DOWNLOAD_BYTES = 2**36
"""Of a download whose length the server does not say; the largest published file has some 2**35."""

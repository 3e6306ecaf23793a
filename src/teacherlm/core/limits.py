"""Limits on the size, the depth and the processing time of input, because a small file can cost any memory or time.

The limits are far above what the project's files and real datasets need. Input above a limit is refused with a message
that names the limit, before memory is allocated for it.
"""

MIB = 2**20

JSON_BYTES = 32 * MIB
"""Maximum size of a JSON file that is read at once: a manifest, a result, a configuration. (Records are read line by
line.)"""
JSON_VALUES = 1_000_000
"""Maximum number of lists and objects in such a file. An empty one of two characters takes about 80 bytes of memory."""
JSON_PARTS = 4_000_000
"""Maximum number of values of all types in such a file or in a record. A string of one character takes about 70 bytes
of memory."""
JSON_DEPTH = 32
"""Maximum nesting of lists and objects. Arrow's file format allows 64 levels, Python's recursion about 900."""

YAML_BYTES = MIB // 4
"""Maximum size of a YAML file. A benchmark's or a model's file has about 1,000 bytes; reading the maximum takes
seconds."""
YAML_DEPTH = 16
"""Maximum nesting of lists and mappings."""
YAML_EXPANDED = 4_000_000
"""Maximum number of characters and values of a YAML file after each alias (`*name`) is replaced by its value."""

TEMPLATE_CHARACTERS = 20_000
"""Maximum number of characters in the source of one template."""
TEMPLATE_WORK = 5_000_000
"""Maximum number of characters that one rendering of a template may make, in its output and in intermediate values."""
TEMPLATE_KEPT = 10_000_000
"""Maximum number of characters and values that the filters, methods and slices of one rendering may return."""
TEMPLATE_BITS = 4000
"""Maximum number of bits of a whole number in a template."""
LOOP_STEP = 20
"""Number of characters that a step of a loop counts as, in addition to the characters that it makes."""
TEMPLATE_SECONDS = 10.0
"""Maximum processor time of one rendering."""

PATTERN_CHARACTERS = 500
"""Maximum number of characters of a regular expression in a benchmark's YAML."""
PATTERN_SECONDS = 1.0
"""Maximum time that such a pattern may take for one text. A pattern can take exponential time."""
ANSWER_CHARACTERS = 20_000
"""Maximum number of characters of a written text in which an answer is looked for, counted from the text's end."""

LINE_BYTES = 64 * MIB
"""Maximum size of one record in a JSON lines file. It may have JSON_VALUES lists and objects."""
LIST_BYTES = 256 * MIB
"""Maximum size of a file of samples that is one JSON list, which is read at once."""
LIST_VALUES = 5_000_000
"""Maximum number of lists and objects in such a file."""
LIST_PARTS = 8_000_000
"""Maximum number of values of all types in such a file."""

ROW_COMMAS = 1_000_000
"""Maximum number of commas in a row of a CSV file. The row may have LINE_BYTES characters, on one or several lines."""
FIELDS = 60_000
"""Maximum number of fields in all records of a dataset together. `datasets` takes up to a millisecond for each."""
INNER_FIELDS = 1000
"""Maximum number of fields of the objects in one field, in all records together. The field's type is built again for
each new name."""

UNPACKED_BYTES, UNPACKED_TIMES = 64 * MIB, 200
"""A compressed file may always unpack to UNPACKED_BYTES, and a larger one to UNPACKED_TIMES its size. Text shrinks to a
third or a tenth. A file that was made to fill memory or a disk unpacks to 1,000 times its size or more."""

PAGE_BYTES = 64_000_000
"""Maximum size of the samples on a report's page, as JSON. Browsers have trouble with more."""
PAGE_SAMPLES = 20_000
PAGE_ROWS = 2000
"""Maximum number of rows of one table on a page."""
PAGE_CODE_CHARACTERS = 1_000_000
"""Maximum number of characters of the manifests that a page shows as text."""
PAGE_MISSING = 200
"""Maximum number of lines about missing results on a page."""
PAGE_POINTS = 5000
"""Maximum number of points in one line of a chart."""

DOWNLOAD_BYTES = 2**36
"""Maximum size of a download whose length the server does not give. The largest published file has some 2**35 bytes."""

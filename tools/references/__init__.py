"""Published numbers, and what may be said of a measurement beside them.

Each stands with its table, protocol, unit and mark.

``tables`` reads and checks the files; ``verdicts`` compares runs with them.
"""

from tools.references.tables import (
    MARKS,
    Reference,
    Row,
    Table,
    load_references,
    parse_table,
    reference,
)
from tools.references.verdicts import (
    Published,
    Verdict,
    judge,
    not_comparable,
    references_of,
    training_of,
)

__all__ = [
    "MARKS",
    "Published",
    "Reference",
    "Row",
    "Table",
    "Verdict",
    "judge",
    "load_references",
    "not_comparable",
    "parse_table",
    "reference",
    "references_of",
    "training_of",
]

"""Entry points: Places365 through classification's engine."""

from functools import partial

from classification import run
from classification.splits import Readers
from scene.places365 import read_places365

# Data set -> its reader and the split whose numbers are reported.
READERS: Readers = {"places365": (read_places365, "val")}

check = partial(run.check, readers=READERS)
train = partial(run.train, readers=READERS)
evaluate = partial(run.evaluate, readers=READERS)
evaluate_together = partial(run.evaluate_together, readers=READERS)

"""Entry points: Places365 through classification's engine."""

from functools import partial

from classification import run
from classification.catalog import readers_of

READERS = readers_of("scene")

check = partial(run.check, readers=READERS)
inspect = partial(run.inspect, readers=READERS)
train = partial(run.train, readers=READERS)
evaluate = partial(run.evaluate, readers=READERS)
evaluate_together = partial(run.evaluate_together, readers=READERS)

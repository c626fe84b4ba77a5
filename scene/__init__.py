"""Scene recognition on Places365. `run` is the door; the engine is classification's."""

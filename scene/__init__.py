"""Scene recognition on Places365, trained and evaluated by classification's engine."""

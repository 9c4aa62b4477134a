from .coverage import cases

"""The command line: arguments in, tables, JSON and exit status out. What is done is the engine's business."""

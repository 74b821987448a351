"""The commands of `imagen`: one module each, with its arguments and what runs it.

embed.py, train.py, sample.py, demo.py, export.py, plan.py, doctor.py, data.py
imports.py   is `imagen import`, which is no name of a module
evaluate.py  with evaluate_protocols.py (cascades) and evaluate_features.py (images)

command.py   the form of their help, and arguments that several have
corpus.py    arguments about a corpus
hosts.py     several hosts that run one command together
signals.py   SIGTERM and SIGHUP end a command as Ctrl-C does
settings.py  sampling settings: one value, one for each stage, or several to compare
status.py    exit statuses, and errors in one line
"""

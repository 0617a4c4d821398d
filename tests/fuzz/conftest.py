"""Prints the campaign's table at the end of a run, also of one on several processes."""

import json
from collections import Counter

from campaign import counts, table


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # one of several processes
        session.config.workeroutput["fuzz"] = json.dumps(counts)


def pytest_configure(config):
    if config.pluginmanager.hasplugin("xdist"):  # it has no session of its own yet
        config.pluginmanager.register(_Workers())


class _Workers:
    def pytest_testnodedown(self, node):
        for surface, verdicts in json.loads(getattr(node, "workeroutput", {}).get("fuzz", "{}")).items():
            counts[surface] += Counter(verdicts)


def pytest_terminal_summary(terminalreporter):
    if counts:
        terminalreporter.write_line("")
        for line in table(counts):
            terminalreporter.write_line(line)

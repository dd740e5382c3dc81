"""A report as JUnit XML, for what CI services show of tests: one test case a gate."""

from __future__ import annotations

from xml.etree import ElementTree as Xml

from compresskit.render import figures, rows
from compresskit.report import Gate, Report

_SUITE = "compresskit check"


def junit(report: Report) -> str:
    """The report as a JUnit document, ending in a line break.

    A gate that failed, or that was asked for and isn't proven, is a failure: these are what ends with exit code 1. A
    default gate that isn't proven is skipped. Text is on one line, control characters are escaped as elsewhere.
    """
    failed = sum(gate.fails for gate in report.gates)
    skipped = sum(gate.passed is None and not gate.fails for gate in report.gates)
    counts = {"tests": str(len(report.gates)), "failures": str(failed), "errors": "0", "skipped": str(skipped)}
    root = Xml.Element("testsuites", {"name": _SUITE, **counts})
    suite = Xml.SubElement(root, "testsuite", {"name": _SUITE, **counts})
    properties = Xml.SubElement(suite, "properties")
    for name, value in (("verdict", report.verdict.value), ("command", report.command)):
        Xml.SubElement(properties, "property", {"name": name, "value": figures.clean(value)})
    for gate in report.gates:
        _case(suite, gate)
    out = Xml.SubElement(suite, "system-out")
    out.text = "\n".join([rows.headline(report), *map(figures.prose, report.notes)])
    Xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def _case(suite: Xml.Element, gate: Gate) -> None:
    case = Xml.SubElement(suite, "testcase", {"classname": _SUITE, "name": figures.clean(gate.name)})
    if gate.fails:
        kind = "missed" if gate.passed is False else "unproven"
        Xml.SubElement(case, "failure", {"type": kind, "message": rows.gate_text(gate)}).text = rows.gate_text(gate)
    elif gate.passed is None:
        Xml.SubElement(case, "skipped", {"message": rows.gate_text(gate)})
    else:
        Xml.SubElement(case, "system-out").text = rows.gate_text(gate)

"""From a model and stages to a report: apply, export, measure, judge."""

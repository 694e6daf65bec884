"""Names of the files of a run that stay on its machine; most have texts of its rows."""

METRICS = "metrics.jsonl"
REPORT = "report.html"
SAMPLES = "samples.jsonl"
STARTED = ".started"  # names the run that has begun in a folder and is not finished
STATISTICS = "statistics.json"

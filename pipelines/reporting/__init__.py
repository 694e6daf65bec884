"""What a run tells people: its report, cautions and plots."""

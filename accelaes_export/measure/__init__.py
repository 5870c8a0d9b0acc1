"""What a bundle is worth: where its time goes, what it costs in quality, and pages to look at."""

"""SoundCap (paper section 2.3): prompts, captioning engines, curation, and a captioner for silent video."""

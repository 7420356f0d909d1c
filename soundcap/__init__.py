"""SoundCap (paper section 2.3): prompts, captioning engines, curation and fine-tuning of a captioner for silent video."""

"""Parts of `reward_study.py`."""

"""From the folder of a finished run to a repository on the Hugging Face Hub.

Of `training` it shares the reader of such folders, `training.run.finished_run`, and no more.
"""

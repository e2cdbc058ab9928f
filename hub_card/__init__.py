"""From the folder of a finished run to a repository on the Hugging Face Hub; it meets `training` only in files."""

from .quality import paired_differences as paired_differences

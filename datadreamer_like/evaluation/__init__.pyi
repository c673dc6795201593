from .abstention import fit_threshold as fit_threshold
from .abstention import rows_needed as rows_needed
from .calibration import ReliabilityBin as ReliabilityBin
from .calibration import expected_calibration_error as expected_calibration_error
from .calibration import fit_temperature as fit_temperature
from .calibration import fit_temperatures as fit_temperatures
from .calibration import reliability as reliability
from .quality import paired_differences as paired_differences

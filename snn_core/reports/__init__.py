"""Reports on trained and pruned networks."""

from snn_core.reports.energy import AC_PICOJOULE, MAC_PICOJOULE, EnergyReport, LayerEnergy, measure_energy

__all__ = ["AC_PICOJOULE", "MAC_PICOJOULE", "EnergyReport", "LayerEnergy", "measure_energy"]

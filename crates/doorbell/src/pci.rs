//! MSI and MSI-X: capability, table, PBA, and the strategies behind the mask bit.

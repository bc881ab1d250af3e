"""What two servers of the mesh share: settings, errors, interceptors, start and drain, metrics, logs."""

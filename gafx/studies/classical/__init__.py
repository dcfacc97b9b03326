"""`gafx classical`: handcrafted features and the classical models of the thesis, tuned, tested, pictured and saved."""

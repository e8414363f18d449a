collect_ignore_glob = ["make_*.py"]  # they need mergekit, the tests do not

from components.prepare_data.step import main

raise SystemExit(main())

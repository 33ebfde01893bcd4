from components.register_model.step import main

raise SystemExit(main())

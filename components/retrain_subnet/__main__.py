from components.retrain_subnet.step import main

raise SystemExit(main())

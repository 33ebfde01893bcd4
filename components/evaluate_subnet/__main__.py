from components.evaluate_subnet.step import main

raise SystemExit(main())

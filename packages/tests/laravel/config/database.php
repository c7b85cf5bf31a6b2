<?php
return ['default' => 'sqlite', 'connections' => ['sqlite' => ['driver' => 'sqlite', 'database' => base_path('app.db'), 'prefix' => '']]];

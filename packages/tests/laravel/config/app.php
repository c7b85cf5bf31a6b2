<?php
return [
    'name' => 'app', 'env' => 'production', 'debug' => true, 'key' => str_repeat('k', 32), 'cipher' => 'AES-256-CBC', 'timezone' => 'UTC',
    'locale' => 'en', 'aliases' => [],
    'providers' => [
        Illuminate\Database\DatabaseServiceProvider::class,
        Illuminate\Filesystem\FilesystemServiceProvider::class,
        Illuminate\Foundation\Providers\FoundationServiceProvider::class,
        Illuminate\View\ViewServiceProvider::class,
        AppServiceProvider::class,
    ],
];

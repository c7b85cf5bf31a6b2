<?php
// A Laravel of one file: Debian's php-laravel-framework, with what `laravel new` would spread over a tree.
require_once 'Illuminate/autoload.php';

use Illuminate\Support\Facades\DB;
use Illuminate\Support\Facades\Route;

class AppServiceProvider extends Illuminate\Support\ServiceProvider
{
    public function register()
    {
        (new SQLite3(':memory:'))->loadExtension('walrust.so');
    }
}

class Kernel extends Illuminate\Foundation\Http\Kernel
{
}

$app = new Illuminate\Foundation\Application(getenv('APP_HOME'));
$app->singleton(Illuminate\Contracts\Http\Kernel::class, Kernel::class);
$app->singleton(Illuminate\Contracts\Debug\ExceptionHandler::class, Illuminate\Foundation\Exceptions\Handler::class);
$app->booted(function () {
    Route::post('/add', function () {
        DB::transaction(fn () => DB::table('t')->insert(['v' => 'x']));
        return 'pid ' . getmypid();
    });
    Route::get('/status', fn () => json_encode(DB::select('SELECT state, last_error FROM walrust_status')));
});
$kernel = $app->make(Illuminate\Contracts\Http\Kernel::class);
$response = $kernel->handle($request = Illuminate\Http\Request::capture());
$response->send();
$kernel->terminate($request, $response);
